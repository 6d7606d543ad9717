"""The measures of clipping: what is right passes, and each mistake is named."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from harness.tests.measures.training.hand_made import Trainer


class ByTensor(Trainer):
    def clip_gradients(self):
        for p in self.parameters.values():
            nn.utils.clip_grad_norm_(p, self.clip)


class ByValue(Trainer):
    clip = 0.01

    def clip_gradients(self):
        nn.utils.clip_grad_value_(self.parameters.values(), self.clip)


class AfterTheStep(Trainer):
    def clip_gradients(self):
        return torch.tensor(math.nan)


class WithoutTheBias(Trainer):
    def clip_gradients(self):
        nn.utils.clip_grad_norm_([self.parameters["table"]], self.clip)


class ByHand(Trainer):
    """Without the 1e-6 of PyTorch, which is a convention."""

    def clip_gradients(self):
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in self.parameters.values()))
        for p in self.parameters.values():
            p.grad *= min(1.0, self.clip / norm)


class AlwaysScaled(Trainer):
    clip = 5.0

    def clip_gradients(self):
        norm = math.sqrt(sum(float(p.grad.square().sum()) for p in self.parameters.values()))
        for p in self.parameters.values():
            p.grad *= self.clip / (norm + 1e-6)


@pytest.mark.parametrize("trainer", [Trainer, ByHand], ids=lambda kind: kind.__name__)
def test_clipping_by_the_global_norm_passes(judge, trainer):
    record = judge("training::clipping,rehearsal=plain", plain=trainer(settings={"clip": trainer.clip}).run())
    assert record.verdict == "pass", record.message


class SetToZeroBeforeTheStep(Trainer):
    def clip_gradients(self):
        norm = super().clip_gradients()
        for p in self.parameters.values():
            p.grad = None
        return norm


WRONG_CLIPPING = [
    (SetToZeroBeforeTheStep, "set to zero after the backward passes"),
    (ByTensor, "each tensor is clipped by its own norm"),
    (ByValue, "each value is clipped, which changes the direction"),
    (AfterTheStep, "not clipped before the step"),
    (WithoutTheBias, "the cosine between them"),
]


@pytest.mark.parametrize(("trainer", "cause"), WRONG_CLIPPING, ids=lambda value: getattr(value, "__name__", ""))
def test_other_clipping_fails_with_its_cause(judge, trainer, cause):
    record = judge("training::clipping,rehearsal=plain", plain=trainer(settings={"clip": trainer.clip}).run())
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    assert cause in record.details["hint"]


def test_clipping_that_never_happens_is_a_skip_and_not_a_pass(judge):
    record = judge("training::clipping,rehearsal=plain", plain=Trainer(settings={"clip": 1e6}).run())
    assert (record.verdict, "above the limit" in record.message) == ("skip", True)


def test_a_norm_that_is_nan_is_no_reason_to_skip(judge):
    trainer = Trainer(settings={"clip": 1e6})
    trainer.clip = 1e6
    recording = trainer.run()
    for part in ("unclipped", "gradient"):
        recording.steps[1].tensors[part]["bias"] *= math.nan
    assert judge("training::clipping,rehearsal=plain", plain=recording).where == ("step 1",)


def test_a_program_without_clipping_is_skipped(judge):
    recording = Trainer().run()
    without = replace(recording, events=tuple(e for e in recording.events if type(e).__name__ != "Clip"))
    assert judge("training::clipping,rehearsal=plain", plain=without).verdict == "skip"


def test_gradients_below_the_limit_stay_as_they_are(judge):
    program = AlwaysScaled(settings={"clip": 5.0}).run(2)
    big = {name: 1e3 * g for name, g in program.steps[1].tensors["unclipped"].items()}
    program.steps[1].tensors["unclipped"] = big  # so that clipping is judged at all
    assert "scaled up" in judge("training::clipping,rehearsal=plain", plain=program).details["hint"]
