"""The measures of what a program prints and counts: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest
import torch

from harness.tests.measures.training.hand_made import Trainer, passes, recording, text
from harness.training.events import Forward, Printed
from harness.training.optimizer_steps import Step


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


class SumOfSteps(Trainer):
    """The number beside the loss is nearer to the mean than the loss is."""

    total, count = 0.0, 0

    def printed(self, losses, counts):
        self.total, self.count = self.total + losses[0], self.count + 1
        return f"step {self.number} loss {self.total:.4f}, norm 3.6000"


class MeanOfSteps(SumOfSteps):
    def printed(self, losses, counts):
        super().printed(losses, counts)
        return f"step {self.number} loss {self.total / self.count:.6f}"


@pytest.mark.parametrize(("kind", "cause"), [(SumOfSteps, "the sum over"), (MeanOfSteps, "the mean over")])
def test_a_loss_that_is_not_set_to_zero_before_a_step_is_named(judge, kind, cause):
    record = judge("training::printed-loss,rehearsal=plain", plain=kind().run())
    assert (record.verdict, record.where[0]) == ("fail", "step 1")
    assert f"{cause} the steps up to here" in record.details["hint"]


class MeanSinceTheLastPrint(Trainer):
    losses, resets = (), True

    def printed(self, losses, counts):
        self.losses += (losses[0],)
        if self.number % 2 == 0:
            return "."
        mean = sum(self.losses) / len(self.losses)
        self.losses = () if self.resets else self.losses
        return f"step {self.number} loss {mean:.6f}"


class MeanSinceTheFirst(MeanSinceTheLastPrint):
    resets = False


def test_the_mean_since_the_last_print_is_a_convention_and_the_mean_since_the_first_is_none(judge):
    check = "training::printed-loss,rehearsal=plain"
    assert judge(check, plain=MeanSinceTheLastPrint().run()).verdict == "pass"
    record = judge(check, plain=MeanSinceTheFirst().run())
    assert (record.verdict, record.where[0]) == ("fail", "step 2")


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


def test_a_printed_nan_is_the_loss_of_a_step_only_if_that_is_nan(judge):
    """It was no number: a program that prints NaN was skipped, as one that prints no loss."""

    class PrintsNaN(Trainer):
        def printed(self, losses, counts):
            return f"step {self.number} loss nan"

    run = PrintsNaN().run()
    record = judge("training::printed-loss,rehearsal=accumulate", accumulate=run)
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    events = tuple(replace(each, loss=math.nan) if isinstance(each, Forward) else each for each in run.events)
    record = judge("training::printed-loss,rehearsal=accumulate", accumulate=replace(run, events=events))
    assert record.verdict == "pass", record.message


def test_a_program_that_prints_no_loss_is_skipped(judge):
    class Silent(Trainer):
        def printed(self, losses, counts):
            return "."

    assert judge("training::printed-loss,rehearsal=accumulate", accumulate=Silent().run()).verdict == "skip"


class PrintsEstimates(Trainer):
    """Prints the mean loss of two evaluated batches, as computed in float32 and with all its digits, and no other."""

    def train_step(self):
        ids, targets = self.batches()[0]
        for loss in (3.1, 2.9):
            self.record(Forward, phase="eval", ids=ids, targets=targets, loss=loss, mode="eval")
        self.record(Printed, text="Train loss: 3.0000001192092896")
        super().train_step()

    def printed(self, losses, counts):
        return "."


def test_an_estimate_in_float32_that_is_printed_with_all_its_digits_is_no_loss_of_a_step(judge):
    """It was said to be another number than the loss of the step before it."""
    assert judge("training::printed-loss,rehearsal=accumulate", accumulate=PrintsEstimates().run()).verdict == "skip"


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


@pytest.mark.parametrize(
    ("starts", "verdict"),
    [
        ([[0, 16], [32], [16, 32], [0]], "pass"),  # three windows an epoch, two a step
        ([[0, 16], [32, 48], [64]], "pass"),  # the run ends with the text
        ([[0, 16], [32], [48, 64], [80]], "fail"),  # in the middle of the text
        ([[0], [0], [0], [0]], "fail"),  # every step
    ],
)
def test_only_the_step_that_ends_an_epoch_may_have_fewer_rows(judge, starts, verdict):
    settings = {"accumulation": 1, "batch_size": 2}
    events = passes(text(), starts, first=0)
    steps = [Step(order=100 + n, number=n, optimizer="SGD", groups=()) for n in range(len(starts))]
    numbered = [replace(event, step=n) for n, event in enumerate(each for each in events if isinstance(each, Forward))]
    run = recording([*numbered, *steps], rehearsal="accumulate", settings=settings)
    assert judge("training::steps-and-tokens", accumulate=run).verdict == verdict
    # The same rows come again with other padding, as they are in other batches.
    width = 20
    wider = [replace(each, **padded(each, width + each.step)) for each in numbered]
    run = recording([*wider, *steps], rehearsal="accumulate", settings=settings)
    assert judge("training::steps-and-tokens", accumulate=run).verdict == verdict


def padded(forward, width):
    """The ids and targets of a pass with padding behind them, which the loss ignores."""
    behind = (0, width - forward.ids.shape[1])
    pad = torch.nn.functional.pad
    return {"ids": pad(forward.ids, behind, value=0), "targets": pad(forward.targets, behind, value=-100)}


@pytest.mark.parametrize(
    ("starts", "verdict"),
    [
        ([[0, 16], [32], [48, 64], [80, 96]], "pass"),  # batches of rows of like lengths come in any order
        ([[0, 16], [32], [48, 64], [80]], "fail"),  # an epoch has one short batch
        ([[0], [16], [32, 48], [64, 80]], "fail"),  # both micro-batches of a step
    ],
    ids=["one", "two", "a whole step"],
)
def test_one_micro_batch_of_an_epoch_may_be_short_wherever_it_comes(judge, starts, verdict):
    events = [replace(event, step=number // 2) for number, event in enumerate(passes(text(), starts, first=0))]
    steps = [Step(order=100 + number, number=number, optimizer="SGD", groups=()) for number in range(2)]
    run = recording([*events, *steps], rehearsal="accumulate", settings={"accumulation": 2, "batch_size": 2})
    assert judge("training::steps-and-tokens", accumulate=run).verdict == verdict
