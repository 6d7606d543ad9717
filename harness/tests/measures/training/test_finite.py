"""The measure of numbers that are not finite: the place where the first one comes from is named."""

import math
from dataclasses import replace

import pytest

from harness.tests.measures.training.hand_made import Trainer
from harness.training.events import MadeNaN

CHECK = "training::numbers-stay-finite,rehearsal=plain"


class NoRate(Trainer):
    def rate(self, step):
        return math.nan if step == 2 else self.lr


class DividesByZero(Trainer):
    def clip_gradients(self):
        for p in self.parameters.values() if self.number == 2 else ():
            p.grad /= 0.0


class Overwritten(Trainer):
    def zero_grad(self):
        super().zero_grad()
        if self.number == 1:
            self.parameters["bias"].data[3] = math.inf


class Root(Trainer):
    def loss(self, ids, targets, dtype=None):
        return super().loss(ids, targets, dtype) + self.parameters["bias"].square().sum().sqrt()  # the bias starts at 0


class NaN(Trainer):
    def loss(self, ids, targets, dtype=None):
        return super().loss(ids, targets, dtype) * (math.nan if self.number == 2 else 1.0)


class BeginsInfinite(Trainer):
    def __init__(self, **options):
        super().__init__(**options)
        self.parameters["table"].data[5, 5] = math.inf


WRONG = [
    (NoRate, 2, "the gradients are finite, and table is not after the step: the learning rate is nan"),
    (DividesByZero, 2, "the gradient of table is finite before it is clipped, and not after"),
    (Overwritten, 2, "bias is finite after the step before, and not at this one: the optimizer did not change it"),
    (NaN, 2, "the forward pass of finite parameters has a loss of nan"),
    (BeginsInfinite, 0, "table is not finite at the start"),
]


def test_a_program_whose_numbers_stay_finite_passes(judge):
    assert judge(CHECK, plain=Trainer().run()).verdict == "pass"


@pytest.mark.parametrize(("kind", "step", "cause"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_where_the_first_number_comes_from_that_is_not_finite_is_said(judge, kind, step, cause):
    record = judge(CHECK, plain=kind().run())
    assert (record.verdict, record.where[0]) == ("fail", f"step {step}")
    assert record.details["hint"] == f"step {step}: {cause}"


def test_a_gradient_that_is_not_finite_beside_a_finite_loss_is_said(judge):
    record = judge(CHECK, plain=Root().run())
    assert record.details["hint"] == "step 0: the loss is finite, and the gradient of bias is not"


def test_the_call_that_makes_the_first_nan_is_named_with_its_line(judge):
    run = NaN().run()
    made = MadeNaN(order=0, step=2, function="softmax", line="train.py:9: scores.softmax(-1)")
    record = judge(CHECK, plain=replace(run, events=(made, *run.events)))
    assert "softmax makes the first NaN" in record.details["hint"]
    assert record.details["line"] == made.line


def test_a_recording_without_tensors_is_judged_by_its_losses(judge):
    run = NaN().run()
    events = tuple(replace(each, tensors={}) if hasattr(each, "tensors") else each for each in run.events)
    record = judge(CHECK, plain=replace(run, events=events))
    assert record.details["hint"] == "step 2: the forward pass has a loss of nan"
