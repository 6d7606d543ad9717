"""The measure of the mean of the weights: its decay, its warm-up, its start, and each mistake by name."""

import pytest
import torch

from harness.tests.measures.training.hand_made import recording
from harness.training.optimizer_steps import Group, Step

GROUP = Group(lr=0.1, betas=None, eps=None, weight_decay=0.0, names=("a", "b"))


def run(decay, *, steps=6, start=0, weights_of="after", left_out=(), declared=None):
    """Return a run whose mean moves by a decay, a number or a function of the step, to the weights of a side."""
    draw = torch.Generator().manual_seed(0)
    weights = {name: torch.randn(20, generator=draw) for name in ("a", "b")}
    mean = {name: value.clone() for name, value in weights.items()}
    events = []
    for number in range(steps):
        after = {name: value + 0.1 * torch.randn(20, generator=draw) for name, value in weights.items()}
        tensors = {"before": dict(weights), "after": after, "average": dict(mean)}
        events.append(Step(order=number, number=number, optimizer="SGD", groups=(GROUP,), tensors=tensors))
        side = after if weights_of == "after" else weights
        kept = decay(number) if callable(decay) else decay
        kept = 0.0 if number < start else kept
        mean = {
            name: value if name in left_out else kept * value + (1 - kept) * side[name] for name, value in mean.items()
        }
        weights = after
    return recording(events, settings={} if declared is None else {"ema_decay": declared})


@pytest.fixture
def mean_of(judge):
    return lambda made: judge("training::mean-of-weights", plain=made)


@pytest.mark.parametrize(
    "right",
    [
        run(0.9),
        run(0.999, declared=0.999),
        run(0.99, start=2),
        run(lambda step: min(0.999, (1 + step) / (10 + step)), declared=0.999),
        run(lambda step: min(0.999, (2 + step) / (11 + step)), declared=0.999),
    ],
)
def test_a_mean_by_its_decay_passes(mean_of, right):
    assert mean_of(right).verdict == "pass", mean_of(right).message


@pytest.mark.parametrize(
    ("wrong", "cause"),
    [
        (run(0.1, declared=0.9), "decay and 1 - decay are swapped"),
        (run(0.001, declared=0.999), "decay and 1 - decay are swapped"),
        (run(0.1), "have a share of 0.9"),
        (run(0.9, declared=0.99), "have a share of 0.1, not 0.01"),
        (run(0.9, weights_of="before"), "moves to the weights before the step"),
        (run(0.9, left_out=("b",)), "have no mean that moves: b"),
    ],
)
def test_another_mean_is_found_and_named(mean_of, wrong, cause):
    record = mean_of(wrong)
    assert record.verdict == "fail"
    assert cause in record.details["hint"]


def test_a_program_without_a_mean_or_whose_mean_never_moves_is_not_judged(mean_of):
    assert mean_of(run(1.0)).verdict == "skip"
