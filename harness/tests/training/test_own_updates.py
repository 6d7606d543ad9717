"""Updates that a program writes itself, without an optimizer of torch, are steps; and their rule is found."""

import pytest
import torch

from harness.core.errors import MissingAbility
from harness.measures.training.steps.hand_written import COUNTED, fitted
from harness.measures.training.steps.rounding import ROUNDING
from harness.tests.training.tiny import record, script

OWN = """\
class Own:
    def __init__(self, parameters):
        self.parameters = list(parameters)
        self.m = [torch.zeros_like(p) for p in self.parameters]
        self.v = [torch.zeros_like(p) for p in self.parameters]
        self.t = 0

    @torch.no_grad()
    def step(self):
        lr = 0.01 / (1 + self.t)
        self.t += 1
        for p, m, v in zip(self.parameters, self.m, self.v):
            g = p.grad
            m.mul_(0.9).add_(g, alpha=0.1)
            v.mul_(0.95).addcmul_(g, g, value=0.05)
            p.mul_(1 - lr * (0.3 if p.dim() > 1 else 0.0))
            p.sub_(lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.95**self.t)).sqrt() + 1e-8))

    def zero_grad(self):
        for p in self.parameters:
            p.grad = None


"""
BUILT = "optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)"
HAND_WRITTEN = ((BUILT, f"{OWN}optimizer = Own(model.parameters())"), ("steps = 3", "steps = 8"))
UPDATE = "p.sub_(lr * (m / (1 - 0.9**self.t)) / ((v / (1 - 0.95**self.t)).sqrt() + 1e-8))"


def own(folder, *changes, before_step="pass", after_step="pass", **request):
    """The recording of the script with its own optimizer and these changes of it."""
    text = script(before_step, after_step, replaced=HAND_WRITTEN)
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return record(folder, text, **request)


def test_each_update_is_a_step_with_what_is_there_before_and_after_it(tmp_path):
    recording = own(tmp_path, after_step="print('after', step)")
    assert (recording.ended, recording.message) == ("finished", "")
    assert [step.number for step in recording.steps] == list(range(8))
    first, second = recording.steps[:2]
    assert first.is_hand_written
    assert [step.groups[0].lr for step in recording.steps[:3]] == [0.01, 0.005, 0.01 / 3]
    assert all(torch.equal(first.after[name], second.before[name]) for name in first.after)
    assert all(not torch.equal(first.after[name], first.before[name]) for name in first.after)
    assert first.gradient.keys() == first.before.keys() == {"wte.weight", "hidden.weight", "hidden.bias"}
    assert first.line.startswith("train.py:")
    assert first.line.endswith(": optimizer.step()")
    assert [line.step for line in recording.printed] == list(range(1, 9))


@pytest.mark.parametrize(
    "update",
    [
        "p.data.add_(u, alpha=-lr)",
        "p.data = p.data - lr * u",
        "p -= lr * u",
        "torch._foreach_add_([p], [u], alpha=-lr)",
        "p[...] = p - lr * u",
        "p.copy_(p - lr * u)",
    ],
)
def test_every_way_to_change_a_parameter_is_seen(tmp_path, update):
    u = f"u = (m / (1 - 0.9**self.t)) / ((v / (1 - 0.95**self.t)).sqrt() + 1e-8)\n            {update}"
    recording = own(tmp_path, (UPDATE, u), ("            p.mul_(1 - lr * (0.3 if p.dim() > 1 else 0.0))\n", ""))
    assert len(recording.steps) == 8
    assert fitted(recording).error <= ROUNDING


def test_an_update_in_the_loop_itself_is_one_step(tmp_path):
    loop = """with torch.no_grad():
    lr = 0.05
    for p in model.parameters():
        p.mul_(1 - lr)
    for p in model.parameters():
        p -= lr * p.grad
class optimizer:
    step = staticmethod(lambda: None)
    zero_grad = model.zero_grad"""
    recording = record(tmp_path, script(loop, replaced=((BUILT, ""),)))
    assert [step.groups[0].lr for step in recording.steps] == [0.05] * 3
    with pytest.raises(MissingAbility, match="none of those known here"):
        fitted(recording)


def test_a_program_with_an_optimizer_of_torch_has_no_steps_of_its_own(tmp_path):
    recording = record(tmp_path, script(after_step="with torch.no_grad():\n    model.hidden.bias.mul_(0.5)"))
    assert [step.is_hand_written for step in recording.steps] == [False] * 3


def test_weights_that_change_without_a_backward_pass_are_no_step(tmp_path):
    average = "with torch.no_grad():\n    print('average')\n    model.hidden.bias.mul_(0.5)"
    recording = own(tmp_path, after_step=average)
    assert len(recording.steps) == 8
    first, second = recording.steps[:2]
    assert torch.equal(second.before["hidden.bias"], first.after["hidden.bias"] * 0.5)


def test_the_run_is_stopped_after_the_steps_that_are_needed(tmp_path):
    recording = own(tmp_path, stop_after=3)
    assert (recording.ended, len(recording.steps)) == ("stopped", 3)


def test_a_right_rule_is_found_with_the_decay_of_each_parameter(tmp_path):
    fit = fitted(own(tmp_path))
    assert (fit.name, fit.mistake) == ("AdamW", "")
    assert fit.error <= ROUNDING
    assert fit.decays == {"wte.weight": 0.3, "hidden.weight": 0.3, "hidden.bias": 0.0}


@pytest.mark.parametrize(
    ("change", "mistake"),
    [
        (("/ (1 - 0.9**self.t)", ""), None),
        (
            ("((v / (1 - 0.95**self.t)).sqrt() + 1e-8)", "(v / (1 - 0.95**self.t) + 1e-8).sqrt()"),
            "eps is inside the square root",
        ),
        (("        for p, m, v in zip(", "        for p, m, v in zip("), ""),
        (("            g = p.grad\n", "            g = p.grad\n            self.t += 1\n"), COUNTED),
    ],
    ids=["no correction of one moment", "eps inside", "right", "counted"],
)
def test_a_wrong_rule_is_named_and_one_that_is_not_known_is_not_judged(tmp_path, change, mistake):
    counts = (("        self.t += 1\n        for", "        for"),) if mistake == COUNTED else ()
    recording = own(tmp_path, *counts, change)
    if mistake is None:
        with pytest.raises(MissingAbility, match="none of those known here"):
            fitted(recording)
    else:
        assert fitted(recording).mistake == mistake


CLIP = """\
params = list(model.parameters())
norm = sum((p.grad.double() ** 2).sum() for p in params).sqrt()
for p in params:
    p.grad.mul_(0.01 / norm)"""


def test_clipping_by_hand_is_seen_from_the_first_step_on(tmp_path):
    """The norm is that of copies in another type, and no optimizer has named the parameters yet."""
    recording = own(tmp_path, before_step=CLIP)
    for step in recording.steps:
        norm = sum(float(gradient.double().square().sum()) for gradient in step.gradient.values()) ** 0.5
        assert norm == pytest.approx(0.01, rel=1e-5)
        for name, gradient in step.replayed.items():
            assert torch.allclose(step.unclipped[name].double(), gradient, rtol=1e-4, atol=1e-7), name
