"""The measures of several ranks: what is right passes, and each mistake is named."""

import math

import pytest
import torch

from harness.tests.measures.training.hand_made import Trainer


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
