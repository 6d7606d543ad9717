"""The measures of gradients: what is right passes, and each mistake is named."""

import math

import pytest

from harness.tests.measures.training.hand_made import T, Trainer


class Accumulating(Trainer):
    """Two micro-batches, the second of which has a short window."""

    accumulation = 2

    def batches(self):
        first, (ids, targets) = super().batches()
        targets[0, 2:] = -100
        return [first, (ids, targets)]


class NoZeroGrad(Trainer):
    def zero_grad(self):
        pass


class StaleBatch(Trainer):
    """Trains on the batch before, whose pass it does after the recorded one."""

    def batches(self):
        self.last, now = getattr(self, "now", None), super().batches()
        self.now = now
        return now

    def loss(self, ids, targets, dtype=None):
        if self.last is None:
            return super().loss(ids, targets, dtype)
        return super().loss(*self.last[0], dtype)


class NotDivided(Accumulating):
    def weight(self, targets, total):
        return 1.0


class MeanOfMeans(Accumulating):
    def weight(self, targets, total):
        return 0.5


class LastMicroBatchOnly(Accumulating):
    def weight(self, targets, total):
        return float(int((targets != -100).sum()) < 3 * T) / 2


class DividedTwice(Trainer):
    accumulation = 2

    def weight(self, targets, total):
        return 0.25


@pytest.mark.parametrize("trainer", [Trainer, Accumulating], ids=lambda kind: kind.__name__)
def test_the_gradient_of_the_mean_over_all_targets_passes(judge, trainer):
    record = judge("training::accumulation-is-one-batch", accumulate=trainer().run(6))
    assert record.verdict == "pass", record.message
    assert max(record.value.values()) < 2


class OverAllPositions(Accumulating):
    def weight(self, targets, total):
        return float((targets != -100).sum()) / (2 * targets.numel())


WRONG_GRADIENTS = [
    (OverAllPositions, "step 0", f"it is divided by all {6 * T} positions, and {5 * T + 2} have a target"),
    (NoZeroGrad, "step 1", "no zero_grad"),
    (StaleBatch, "step 1", "the gradient is that of the batch before"),
    (NotDivided, "step 0", "the cosine to it is"),
    (DividedTwice, "step 0", "the gradient is 0.5 times that of the mean loss of its 2 micro-batches"),
    (MeanOfMeans, "step 0", "the cosine to it is"),
    (LastMicroBatchOnly, "step 0", "the cosine to it is"),
]


@pytest.mark.parametrize(
    ("trainer", "place", "cause"), WRONG_GRADIENTS, ids=lambda value: getattr(value, "__name__", "")
)
def test_another_gradient_fails_and_its_first_step_and_cause_are_named(judge, trainer, place, cause):
    record = judge("training::accumulation-is-one-batch", accumulate=trainer().run(4))
    assert (record.verdict, record.where[0]) == ("fail", place), record.value
    assert cause in record.details["hint"]


def test_a_missing_gradient_counts_as_zero(judge):
    recording = Trainer().run(2)
    del recording.steps[1].tensors["unclipped"]["bias"]
    record = judge("training::gradient-is-of-this-batch,rehearsal=plain", plain=recording)
    assert record.where == ("step 1",)


@pytest.mark.parametrize("name", ["table", "bias"])
def test_a_gradient_that_is_nan_does_not_pass(judge, name):
    recording = Trainer().run(2)
    recording.steps[1].tensors["unclipped"][name] *= math.nan
    assert judge("training::gradient-is-of-this-batch,rehearsal=plain", plain=recording).where == ("step 1",)


def test_a_gradient_of_micro_batches_that_is_nan_is_a_failure_and_no_error(judge):
    """The fit of their weights ended in an internal assertion of LAPACK's wrapper."""
    recording = MeanOfMeans().run(2)
    tensors = recording.steps[0].tensors
    tensors["unclipped"] = {name: each * math.nan for name, each in tensors["unclipped"].items()}
    count = len(recording.forwards_of(0))
    assert count > 1
    tensors["micro_batches"] = {str(number): tensors["unclipped"] for number in range(count)}
    record = judge("training::accumulation-is-one-batch", accumulate=recording)
    assert (record.verdict, record.where[0]) == ("fail", "step 0"), record.message
