"""The measures of the loss against a known entropy: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import T, Trainer, passes, recording, stream, text, windows
from harness.training.events import Forward
from harness.training.markov import random_source

SOURCE = random_source()
MARKOV = SOURCE.draw(9000, seed=3)
LETTERS = "".join(SOURCE.symbols)
SPLIT = 8000


def predicted(loss_of, *, split=SPLIT, rows=8):
    """Return a recording of training and validation on a Markov text, with these losses: (phase, step, own) -> nats."""
    found = []
    for phase, first, last in (("train", 0, split), ("eval", split, len(MARKOV))):
        starts = list(range(first, last - T - 1, T))
        for number, i in enumerate(range(0, len(starts), rows)):
            ids, targets = windows(MARKOV, starts[i : i + rows])
            own = float(SOURCE.nll(ids, targets).sum())
            loss = loss_of(phase, number, own) / targets.numel()
            step = number if phase == "train" else 125
            fields = {"phase": phase, "step": step, "ids": ids, "targets": targets, "loss": loss, "mode": phase}
            fields["used"] = phase == "train"
            found.append(Forward(order=len(found) + 1, **fields))
    shown = "".join(LETTERS[i] for i in MARKOV.tolist())
    return recording([stream(MARKOV), *found], source=SOURCE, text=shown, settings={"lr": 5e-3})


def test_a_program_that_knows_the_source_itself_saves_nothing(judge):
    record = judge("training::loss-below-entropy", markov=predicted(lambda phase, step, own: own + 1e-9))
    assert record.verdict == "pass", record.message
    assert set(record.value) == {"training", "validation before step 125"}
    assert max(record.value.values()) < 1e-3


def test_a_program_that_sees_a_little_of_its_answers_is_found_in_training_and_in_validation(judge):
    """0.02 nats a token are 1.7% of the entropy, less than any curve shows."""
    for phase, place in (("train", "training"), ("eval", "validation before step 125")):
        peeks = predicted(lambda now, step, own, phase=phase: own - 0.02 * 8 * T * (now == phase))
        assert judge("training::loss-below-entropy", markov=peeks).where == (place,)


def test_a_loss_that_is_nan_does_not_pass(judge):
    for phase, place in (("train", "training"), ("eval", "validation before step 125")):
        broken = predicted(lambda now, step, own, phase=phase: math.nan if now == phase and step == 3 else own + 1)
        assert judge("training::loss-below-entropy", markov=broken).where == (place,)


def test_text_that_was_trained_on_before_is_not_judged(judge):
    """A second epoch may be learned by heart, and a loss below the entropy is right there."""
    once = predicted(lambda phase, step, own: own)
    again = [replace(f, order=f.order + 1000, step=f.step + 500, loss=0.0) for f in once.forwards("train")]
    twice = replace(once, events=(*once.events, *again))
    assert judge("training::loss-below-entropy", markov=twice).verdict == "pass"


def test_the_plateau_names_what_the_targets_are(judge):
    for name, level in (
        ("the next token", SOURCE.entropy + 0.05),
        ("a token that it sees", 0.1),
        ("the token two on", SOURCE.entropy_ahead(2)),
        ("a token of another place", SOURCE.unigram_entropy),
        ("no token", math.nan),
    ):
        flat = predicted(lambda phase, step, own, level=level: level * 8 * T)
        assert judge("training::plateau-of-the-next-token", markov=flat).value == name


def test_a_program_without_a_text_of_known_entropy_is_skipped(judge):
    assert judge("training::loss-below-entropy", markov=recording(passes(text(), [[0]]))).verdict == "skip"


def repeated(losses, rows):
    """Return a recording of steps on one batch of these rows."""
    ids = torch.tensor(rows)[:, :-1]
    trainer = Trainer(settings={"lr": 1e-2})
    trainer.batches = lambda: [(ids, torch.tensor(rows)[:, 1:])]
    made = trainer.run(len(losses))
    by_order = {f.order: loss for f, loss in zip(made.forwards("train"), losses, strict=True)}
    events = (
        replace(e, loss=by_order[e.order]) if e.order in by_order and isinstance(e, Forward) else e for e in made.events
    )
    return replace(made, events=tuple(events))


def test_the_floor_of_one_batch_is_the_entropy_of_targets_that_begin_alike(judge):
    """Of two rows that begin alike and part at their third token, 2 of the 6 targets cannot be known: ln 2 each."""
    rows = [[1, 2, 3, 4], [1, 2, 5, 6]]
    floor = 2 * math.log(2) / 6
    record = judge("training::overfits-one-batch", overfit=repeated([3.0, 1.0, floor + 0.001], rows))
    assert record.verdict == "pass", record.message
    assert record.value["the lowest loss"] == pytest.approx(0.001)
    assert "floor 0.2310" in record.details["hint"]
    below = judge("training::overfits-one-batch", overfit=repeated([3.0, floor - 0.01, floor], rows))
    assert below.where == ("the lowest loss",)
    slow = judge("training::overfits-one-batch", overfit=repeated([3.0, 2.9, 2.8], rows))
    assert slow.where == ("the lowest loss", "the last loss")


def test_batches_that_differ_are_no_overfitting(judge):
    several = Trainer(settings={"lr": 1e-2}).run(3)
    assert judge("training::overfits-one-batch", overfit=several).verdict == "skip"


def test_a_program_that_chooses_its_own_learning_rate_may_need_more_steps(judge):
    untold = replace(repeated([3.0, 2.9, 2.8], [[1, 2, 3, 4], [1, 2, 5, 6]]), settings={})
    assert judge("training::overfits-one-batch", overfit=untold).verdict == "skip"
    flat = replace(predicted(lambda phase, step, own: 2.0 * 8 * T), settings={})
    assert judge("training::plateau-of-the-next-token", markov=flat).verdict == "skip"
