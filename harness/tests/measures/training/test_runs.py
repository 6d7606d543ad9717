"""The measures of whole runs, on recordings made by hand: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import T, Trainer, passes, recording, stream, text, windows
from harness.training.markov import random_source
from harness.training.recording import Forward, Printed, Step

SOURCE = random_source()
MARKOV = SOURCE.draw(9000, seed=3)
LETTERS = "".join(SOURCE.symbols)
SPLIT = 8000


# loss against entropy


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
    ):
        flat = predicted(lambda phase, step, own, level=level: level * 8 * T)
        assert judge("training::plateau-of-the-next-token", markov=flat).value == name


def test_a_program_without_a_text_of_known_entropy_is_skipped(judge):
    assert judge("training::loss-below-entropy", markov=recording(passes(text(), [[0]]))).verdict == "skip"


# one batch


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


# the same run again


def test_two_runs_with_one_seed_are_equal_and_two_seeds_differ(judge):
    one = Trainer().run()
    assert judge("training::repeatable", plain=one, again=Trainer().run()).verdict == "pass"
    assert judge("training::seed-matters", plain=one, other_seed=Trainer(seed=1).run()).verdict == "pass"
    record = judge("training::seed-matters", plain=one, other_seed=Trainer().run())
    assert record.where == ("the weights at the start", "the batches")


class OtherBatchAtStep2(Trainer):
    def batches(self):
        found = super().batches()
        return [windows(self.tokens, [5, 6, 7])] if self.number == 2 else found


class OtherRateAtStep2(Trainer):
    def rate(self, step):
        return self.lr * (2 if step == 2 else 1)


class MomentsLostAtStep2(Trainer):
    def step_optimizer(self):
        if self.number == 2:
            for state in self.optimizer.state.values():
                state["exp_avg_sq"] *= 1.5
        super().step_optimizer()


class NoiseAtStep2(Trainer):
    def step_optimizer(self):
        super().step_optimizer()
        if self.number == 2:
            self.parameters["bias"].data += 1e-7


def without_hashes(event):
    return replace(event, hashes={}) if isinstance(event, Step) else event


FIRST_DIFFERENCES = [
    (OtherBatchAtStep2, "the batch differs"),
    (OtherRateAtStep2, "the learning rate differs"),
    (MomentsLostAtStep2, "the optimizer's moments differ"),
    (NoiseAtStep2, "the weights after it differ"),
]


@pytest.mark.parametrize(("trainer", "what"), FIRST_DIFFERENCES, ids=lambda value: getattr(value, "__name__", ""))
@pytest.mark.parametrize("hashed", [True, False], ids=["hashes", "tensors"])
def test_the_first_event_that_differs_is_named(judge, trainer, what, hashed):
    runs = [Trainer().run(), trainer().run()]
    if not hashed:
        runs = [replace(run, events=tuple(map(without_hashes, run.events))) for run in runs]
    record = judge("training::repeatable", plain=runs[0], again=runs[1])
    assert record.where[0] == "step 2"
    assert record.value["step 2"] == what


def test_a_run_that_ends_early_is_another_run(judge):
    record = judge("training::repeatable", plain=Trainer().run(4), again=Trainer().run(3))
    assert record.details["hint"] == "'plain' has 4 optimizer steps and 'again' 3"


# resuming


def resumed(kind=Trainer, *, at=2, steps=4, change=lambda trainer: None):
    """Return a straight run, and one that continues from step `at`; `change` is what the resume loses."""
    trainer = kind()
    for _ in range(at):
        trainer.train_step()
    trainer.events = [trainer.events[0]]
    change(trainer)
    return Trainer().run(steps), trainer.run(steps - at)


def lose_moments(trainer):
    trainer.optimizer.state.clear()


def lose_rng(trainer):
    trainer.generator.manual_seed(5)


def lose_weights(trainer):
    trainer.parameters["table"].data *= 1.01


RESUMES = [
    (lambda trainer: None, None, set()),
    (lose_moments, "the optimizer's moments differ", {"moments"}),
    (lose_rng, "the batch differs", {"batch"}),
    (lose_weights, "the weights before it differ", {"weights"}),
]


@pytest.mark.parametrize(("change", "what", "lost"), RESUMES, ids=["complete", "moments", "rng", "weights"])
def test_what_a_resume_loses_is_named(judge, change, what, lost):
    straight, other = resumed(change=change)
    record = judge("training::resume-is-continuation", straight=straight, resumed=other)
    assert (record.verdict == "pass") == (what is None), record.message
    assert what is None or record.value["step 2"] == what
    record = judge("training::checkpoint-is-complete", straight=straight, resumed=other)
    assert {place for place, value in record.value.items() if value == "lost"} == lost


def test_a_step_that_is_done_twice_after_a_resume_is_found(judge):
    straight, other = resumed()
    longer = Trainer()
    longer.number = 2
    record = judge("training::resume-is-continuation", straight=straight, resumed=longer.run(3))
    assert "number of steps" in record.where
    assert "3 steps after the checkpoint, and 2 without a stop" in record.details["hint"]
    assert len(other.steps) == 2


# validation


def validated(change=lambda number, forwards: forwards, *, printed=None, losses=(3.0, 2.0), lengths=(4, 1), start=3000):
    """Return a run with a validation of two passes before steps 0 and 2."""
    events = list(Trainer().run().events)
    tokens = text()
    for step in (0, 2):
        before = min(e.order for e in events if isinstance(e, Forward) and e.step == step)
        starts = [[100 * i + start for i in range(length)] for length in lengths]
        forwards = [
            replace(passes(tokens, [row], phase="eval", loss=loss)[0], step=step, order=before - 1 + i / 10)
            for i, (row, loss) in enumerate(zip(starts, losses, strict=True))
        ]
        events += change(step, forwards)
        if printed:
            lines = enumerate(printed.split("\n"))
            events += [Printed(order=before - 0.5 + i / 100, step=step, text=line) for i, line in lines]
    return recording(events)


def test_validation_in_eval_mode_without_gradients_passes(judge):
    run = validated()
    for check in ("validation-is-pure", "validation-set-stays"):
        assert judge(f"training::{check}", validate_often=run).verdict == "pass"


def test_validation_in_training_mode_is_found(judge):
    run = validated(lambda step, forwards: [replace(f, mode="train") for f in forwards])
    record = judge("training::validation-is-pure", validate_often=run)
    assert record.where == ("validation passes not in eval mode",)


def test_training_that_goes_on_in_eval_mode_is_found(judge):
    run = validated()
    events = (replace(e, mode="eval") if isinstance(e, Forward) and e.step > 2 else e for e in run.events)
    record = judge("training::validation-is-pure", validate_often=replace(run, events=tuple(events)))
    assert record.where == ("training passes not in training mode",)


def test_validation_with_gradients_is_found(judge):
    run = validated(
        lambda step, forwards: [replace(f, phase="train", mode="eval") for f in forwards] if step else forwards
    )
    record = judge("training::validation-is-pure", validate_often=run)
    assert record.where == ("validation passes with gradients",)
    assert record.value[record.where[0]] == 2


class LogsWithGradients(Trainer):
    """Has a second pass with gradients before each step, for its log, that no backward pass uses."""

    def train_step(self):
        ids, targets = windows(self.tokens, [3000])
        self.record(Forward, phase="train", ids=ids, targets=targets, loss=9.0, mode="train", line="train.py:9: log(x)")
        super().train_step()


def test_a_pass_with_gradients_for_the_log_at_every_step_is_no_micro_batch(judge):
    run = LogsWithGradients(settings={"steps": 4, "accumulation": 1, "batch_size": 3}).run()
    record = judge("training::validation-is-pure", validate_often=run)
    assert record.value["validation passes with gradients"] == 4
    assert record.details["hint"] == "validation passes with gradients: train.py:9: log(x)"
    for check in ("steps-and-tokens", "printed-loss,rehearsal=accumulate"):
        assert judge(f"training::{check}", accumulate=run).verdict == "pass"
    assert judge("data::batches-differ", plain=run).verdict == "pass", "the rows of the log come again"


def with_an_estimate(*, of, losses=(9.0, 8.0)):
    """Return a run with a validation of two passes, and an estimate on as many windows that are trained on: `of`."""

    def change(step, forwards):
        rows = [of(step) for _ in forwards]
        estimate = [
            replace(f, ids=ids, targets=targets, loss=loss, order=f.order - 0.3)
            for f, (ids, targets), loss in zip(forwards, rows, losses, strict=True)
        ]
        return [*estimate, *forwards]

    return validated(change, printed="train loss 8.5000, val loss 2.8000", start=3996 - 4 * 100)


def test_an_estimate_of_the_training_loss_may_be_on_other_windows_each_time(judge):
    draw = torch.Generator().manual_seed(3)
    run = with_an_estimate(of=lambda step: windows(text(), torch.randint(3000, (4,), generator=draw).tolist()))
    for check in ("validation-set-stays", "printed-validation-loss"):
        record = judge(f"training::{check}", validate_often=run)
        assert record.verdict == "pass", record.message


def test_other_validation_windows_are_found(judge):
    run = validated(lambda step, forwards: [replace(f, ids=f.ids + (step > 0)) for f in forwards])
    record = judge("training::validation-set-stays", validate_often=run)
    assert record.where == ("validation before step 2",)


# Passes of 4 and 1 windows with losses of 3 and 2: 2.8 over the targets, 2.5 over the passes.
@pytest.mark.parametrize(
    ("printed", "verdict"),
    [
        ("val loss 2.8000", "pass"),
        ("val loss 2.8", "pass"),
        ("val loss 2.5000", "fail"),
        ("validation 16.445 (perplexity), loss 2.80", "pass"),
        ("train loss 2.8000\nval loss 2.7", "fail"),  # a line with "val" counts, if there is one
        ("train loss 2.7\nval loss 2.8000", "pass"),
    ],
)
def test_a_printed_validation_loss_is_the_mean_over_the_targets(judge, printed, verdict):
    run = validated(printed=printed)
    record = judge("training::printed-validation-loss", validate_often=run)
    assert record.verdict == verdict, record.message
    if "2.5" in printed:
        assert "the mean of the batches' means" in record.details["hint"]


# logs


class TwoMicroBatches(Trainer):
    accumulation = 2

    def batches(self):
        first, (ids, targets) = super().batches()
        targets[0, 2:] = -100
        return [first, (ids, targets)]


class LastOnly(TwoMicroBatches):
    def printed(self, losses, counts):
        return f"step {self.number} loss {losses[-1]:.4f}"


class Sum(TwoMicroBatches):
    def printed(self, losses, counts):
        return f"step {self.number} loss {sum(losses):.4f}"


class LastDivided(TwoMicroBatches):
    def printed(self, losses, counts):
        return f"step {self.number} loss {losses[-1] / 2:.4f}"


class MeanOfMeans(TwoMicroBatches):
    def printed(self, losses, counts):
        return f"step {self.number} loss {sum(losses) / 2:.6f}"


@pytest.mark.parametrize("kind", [Trainer, TwoMicroBatches], ids=lambda kind: kind.__name__)
def test_the_printed_loss_is_the_mean_over_all_targets_of_the_step(judge, kind):
    assert judge("training::printed-loss,rehearsal=accumulate", accumulate=kind().run()).verdict == "pass"


WRONG_LOGS = [
    (LastOnly, "the loss of the last micro-batch alone"),
    (Sum, "the sum over the micro-batches"),
    (LastDivided, "divided by their number"),
    (MeanOfMeans, "the mean of the micro-batches' means"),
]


@pytest.mark.parametrize(("kind", "cause"), WRONG_LOGS, ids=lambda value: getattr(value, "__name__", ""))
def test_another_printed_loss_is_named(judge, kind, cause):
    record = judge("training::printed-loss,rehearsal=accumulate", accumulate=kind().run())
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    assert cause in record.details["hint"]


def test_a_number_that_is_printed_beside_a_loss_of_nan_does_not_pass(judge):
    run = Trainer().run()
    events = tuple(replace(e, loss=math.nan) if isinstance(e, Forward) and e.step == 1 else e for e in run.events)
    record = judge("training::printed-loss,rehearsal=accumulate", accumulate=replace(run, events=events))
    assert record.where == ("step 1",)


def test_a_program_that_prints_no_loss_is_skipped(judge):
    class Silent(Trainer):
        def printed(self, losses, counts):
            return "."

    assert judge("training::printed-loss,rehearsal=accumulate", accumulate=Silent().run()).verdict == "skip"


def test_steps_and_rows_are_those_that_were_declared(judge):
    settings = {"steps": 4, "accumulation": 2, "batch_size": 3}
    run = TwoMicroBatches(settings=settings).run()
    assert judge("training::steps-and-tokens", accumulate=run).verdict == "pass"
    record = judge("training::steps-and-tokens", accumulate=TwoMicroBatches(settings=settings).run(2))
    assert record.where == ("optimizer steps",)
    record = judge("training::steps-and-tokens", accumulate=Trainer(settings=settings).run())
    assert record.where[0] == "step 0: micro-batches"


def test_the_steps_of_a_run_that_the_harness_stopped_are_not_judged_unless_they_are_too_many(judge):
    settings = {"steps": 40, "accumulation": 2, "batch_size": 3}
    record = judge("training::steps-and-tokens", accumulate=TwoMicroBatches(settings=settings).run(4, ended="stopped"))
    assert record.verdict == "pass"
    assert "optimizer steps" not in record.value
    more = TwoMicroBatches(settings=settings | {"steps": 2}).run(4, ended="stopped")
    assert judge("training::steps-and-tokens", accumulate=more).where == ("optimizer steps",)


# ranks


def ranks(combine, *, same_start=True, steps=3):
    """Return the recordings of two ranks that combine their gradients: (own, other) -> what is used."""
    trainers = [Trainer(seed=0), Trainer(seed=0 if same_start else 1)]
    trainers[1].generator.manual_seed(9)
    for trainer in trainers:
        trainer.clip_gradients = lambda: None
    own = [trainer.gradients for trainer in trainers]

    def exchanged(i):
        def step():
            for name, p in trainers[i].parameters.items():
                p.grad = combine(own[i]()[name], other[1 - i][name])
            torch.optim.AdamW.step(trainers[i].optimizer)

        return step

    for _ in range(steps):
        other = []
        for trainer in trainers:  # the gradients first, on both ranks
            state = trainer.generator.get_state()
            (ids, targets) = trainer.batches()[0]
            trainer.generator.set_state(state)
            other.append(trainer.replayed([(ids, targets)], torch.float32))
        for i, trainer in enumerate(trainers):
            used = {n: combine(other[i][n], other[1 - i][n]) for n in other[i]}
            trainer.gradients = lambda used=used: {n: g.clone() for n, g in used.items()}
            trainer.step_optimizer = exchanged(i)
            trainer.train_step()
    return [trainer.run(0) for trainer in trainers]


def test_ranks_that_use_the_mean_of_their_gradients_agree(judge):
    found = ranks(lambda own, other: (own + other) / 2)
    assert judge("training::ranks-agree", two_ranks=found).verdict == "pass"
    assert judge("training::ranks-are-one-batch", two_ranks=found).verdict == "pass"


WRONG_RANKS = {
    "no synchronisation": (lambda own, other: own, "the gradient of its own batch", {"agree", "batch"}),
    "a sum": (lambda own, other: own + other, "2 times the mean", {"batch"}),
    "divided twice": (lambda own, other: (own + other) / 4, "divided twice", {"batch"}),
}


@pytest.mark.parametrize(("combine", "cause", "red"), WRONG_RANKS.values(), ids=WRONG_RANKS)
def test_ranks_that_do_not_are_named(judge, combine, cause, red):
    found = ranks(combine)
    agree = judge("training::ranks-agree", two_ranks=found)
    assert (agree.verdict == "fail") == ("agree" in red)
    record = judge("training::ranks-are-one-batch", two_ranks=found)
    assert record.verdict == "fail"
    assert cause in record.details["hint"]


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_whose_gradient_is_nan_does_not_pass(judge, rank):
    found = ranks(lambda own, other: (own + other) / 2)
    found[rank].steps[1].tensors["unclipped"]["table"][0] = math.nan
    assert judge("training::ranks-are-one-batch", two_ranks=found).where == ("step 1",)


def test_ranks_that_start_differently_are_found_before_the_first_step(judge):
    record = judge("training::ranks-agree", two_ranks=ranks(lambda own, other: (own + other) / 2, same_start=False))
    assert record.value["step 0"] == "the weights before it differ"


def test_one_rank_alone_is_a_skip(judge):
    assert judge("training::ranks-agree", two_ranks=[Trainer().run(1)]).verdict == "skip"
