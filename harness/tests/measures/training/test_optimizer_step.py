"""The measures of the optimizer's step: what is right passes, and each mistake is named."""

import math

import pytest
import torch

from harness.measures.training.steps import causality, clipping, gradients, optimizer_step, schedule_forms
from harness.tests.measures.training.hand_made import PlainAdam, Trainer


class SGD(Trainer):
    lr = 0.1

    def make_optimizer(self):
        return torch.optim.SGD(self.parameters.values(), lr=self.lr, momentum=0.9, nesterov=True, weight_decay=0.1)


class Fused(Trainer):
    def make_optimizer(self):
        return torch.optim.AdamW(self.parameters.values(), lr=self.lr, fused=True, amsgrad=True)


@pytest.mark.parametrize("trainer", [Trainer, SGD, PlainAdam, Fused], ids=lambda kind: kind.__name__)
def test_the_rules_of_pytorch_s_optimizers_pass(judge, trainer):
    recording = trainer().run(10)
    record = judge("training::optimizer-step,steps=10", plain=recording)
    assert record.verdict == "pass", record.message
    assert max(record.value.values()) < 2
    assert list(judge("training::optimizer-step,steps=1", plain=recording).value) == ["step 0"]


class OwnAdamW(torch.optim.Optimizer):
    """AdamW by hand, with a mistake that `wrong` names."""

    def __init__(self, parameters, wrong, lr=1e-2, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self.wrong = wrong

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                self.update(p, group)

    def update(self, p, group):
        state = self.state[p]
        if not state:
            state |= {"step": torch.tensor(0.0), "exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
        (b1, b2), lr, g = group["betas"], group["lr"], p.grad
        if self.wrong == "betas":
            b1, b2 = b2, b1
        if self.wrong == "beta2":
            b2 = 0.999
        if self.wrong == "L2":
            g = g + group["weight_decay"] * p
        state["step"] += 1
        t = int(state["step"])
        first, second = 1.0 if self.wrong == "first sum" else 1 - b1, 1.0 if self.wrong == "second sum" else 1 - b2
        m, v = state["exp_avg"].mul_(b1).add_(g, alpha=first), state["exp_avg_sq"].mul_(b2).addcmul_(g, g, value=second)
        if self.wrong not in ("L2", "decay after", "no decay"):
            p *= 1 - lr * group["weight_decay"]
        if self.wrong == "decay twice":
            p *= 1 - lr * group["weight_decay"]
        correct = (1.0, 1.0) if self.wrong == "no correction" else (1 - b1**t, 1 - b2**t)
        below = (v / correct[1] + 1e-8).sqrt() if self.wrong == "eps" else (v / correct[1]).sqrt() + 1e-8
        if self.wrong == "eps early":
            below = (v.sqrt() + 1e-8) / correct[1] ** 0.5
        p -= lr * (m / correct[0]) / below
        if self.wrong == "decay after":
            p *= 1 - lr * group["weight_decay"]


def own_adamw(mistake):
    class Own(Trainer):
        def make_optimizer(self):
            kind = type("AdamW", (OwnAdamW,), {})  # the name is what the recording has
            table, bias = self.parameters.values()
            return kind([{"params": [table]}, {"params": [bias], "weight_decay": 0.0}], mistake)

    return Own


def test_adamw_by_hand_passes(judge):
    assert judge("training::optimizer-step,steps=10", plain=own_adamw("")().run(10)).verdict == "pass"


WRONG_STEPS = {
    "betas": "the betas are swapped",
    "beta2": "the step used beta2 = 0.999",
    "L2": "the decay is in the gradient (L2)",
    "decay after": "the decay comes after the update",
    "decay twice": "the weights decay twice",
    "no decay": "the weights do not decay",
    "no correction": "there is no bias correction",
    "eps": "eps is inside the square root",
    "eps early": "eps is added before the bias correction",
    "first sum": "the first moment adds the gradient without the factor 1 - beta1",
    "second sum": "the second moment adds the squared gradient without the factor 1 - beta2",
}


@pytest.mark.parametrize(("mistake", "cause"), WRONG_STEPS.items(), ids=WRONG_STEPS)
def test_another_rule_fails_at_its_first_step_with_its_cause(judge, mistake, cause):
    record = judge("training::optimizer-step,steps=10", plain=own_adamw(mistake)().run(10))
    assert (record.verdict, record.where[0]) == ("fail", "step 0")
    assert cause in record.details["hint"], record.details["hint"]
    assert min(record.value[place] for place in record.where) > 30


def test_the_bounds_of_hints_are_those_of_the_checks(shipped):
    for bound, checks in (
        (optimizer_step.ROUNDING, ("optimizer-step,steps=1", "optimizer-step,steps=10")),
        (
            gradients.NOISE,
            ("gradient-is-of-this-batch,rehearsal=plain", "accumulation-is-one-batch", "ranks-are-one-batch"),
        ),
        (clipping.EXACT, ("clipping,rehearsal=plain",)),
        (causality.NOISE, ("sees-no-later-token",)),
        (schedule_forms.EXACT, tuple(f"lr-at-each-step,rehearsal={name}" for name in ("past-horizon", "accumulate"))),
    ):
        assert {shipped[f"training::{check}"].expected["at_most"] for check in checks} == {bound}


@pytest.mark.parametrize("name", ["table", "bias"])  # the first parameter and the last one
def test_an_update_that_writes_nan_does_not_pass(judge, name):
    recording = Trainer().run(3)
    recording.steps[1].tensors["after"][name][0] = math.nan
    record = judge("training::optimizer-step,steps=10", plain=recording)
    assert (record.verdict, record.where) == ("fail", ("step 1",))
    assert f"step 1, {name}: " in record.details["hint"]


def test_an_optimizer_without_a_known_rule_is_skipped(judge):
    class Other(Trainer):
        def make_optimizer(self):
            return torch.optim.Adagrad(self.parameters.values())

    record = judge("training::optimizer-step,steps=1", plain=Other().run(1))
    assert (record.verdict, "Adagrad" in record.message) == ("skip", True)
