"""The update rules of optimizers as formulas, in any precision, and the known ways to get one wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.measures.training.steps.rounding import unit_in_last_place
from harness.training.optimizer_steps import Group

State = Mapping[str, Tensor]  # of one parameter: exp_avg, exp_avg_sq, step


@dataclass(frozen=True)
class Inputs:
    """What one update of one parameter starts from.

    Attributes:
        p, g: The parameter and the gradient that the optimizer used.
        state: The optimizer's state before the update; empty before the first one.
        group: The settings.
        steps: The updates of this parameter before this one.
    """

    p: Tensor
    g: Tensor
    state: State
    group: Group
    steps: int

    def option(self, name: str) -> float:
        """Return an option of the group as a number; 0 if it has none."""
        value = self.group.options.get(name)
        return float(value) if value is not None else 0.0

    def moment(self, name: str) -> Tensor:
        """Return a moment before the update; zero before the first one."""
        return self.state[name].to(self.p.dtype) if name in self.state else torch.zeros_like(self.p)


def nudged(given: Inputs, dtype: torch.dtype) -> Inputs:
    """Return what an update starts from, with the gradient off by one rounding of what is added to it.

    Where a gradient cancels the moment, or the decay that Adam and SGD add to it, what remains is rounding, and Adam
    scales it to the size of a full update.
    """
    beta = given.group.betas[0] if given.group.betas else given.option("momentum")
    decay = (given.group.weight_decay * given.p).abs()
    moment = given.moment("exp_avg" if given.group.betas else "momentum_buffer").abs() * beta / max(1 - beta, 1e-3)
    added = torch.maximum(moment, torch.where(decay < 2 * given.g.abs(), decay, 0.0))
    return replace(given, g=given.g + unit_in_last_place(torch.maximum(added, given.g.abs()), dtype))


Result = dict[str, Tensor]  # "parameter", and the moments by their names
Rule = Callable[[Inputs], Result]


@dataclass(frozen=True)
class Adam:
    """Adam's rule (Kingma and Ba 2015) with its options; the defaults are PyTorch's and AdamW's.

    p <- p (1 - lr wd), then p <- p - lr m̂ / (√v̂ + eps), with m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g²,
    m̂ = m / (1 - b1^t), v̂ = v / (1 - b2^t).
    """

    decay: str = (
        "before"  # the update; or "after", "twice" (before and after), "twice before", "in the gradient", "none"
    )
    corrected: bool = True
    eps_inside: bool = False
    eps_scaled: bool = False  # eps added to √v before the bias correction
    m_averaged: bool = True  # g has the factor 1 - b1
    v_averaged: bool = True  # g² has the factor 1 - b2
    change: Callable[[Group], Group] = field(default=lambda group: group)  # the settings that it uses instead

    def __call__(self, given: Inputs) -> Result:
        """Return the parameter and the moments after the update."""
        group = self.change(given.group)
        assert group.betas is not None
        assert group.eps is not None
        (b1, b2), eps, lr, wd = group.betas, group.eps, group.lr, group.weight_decay
        p, t = given.p, given.steps + 1
        g = -given.g if given.option("maximize") else given.g
        if self.decay == "in the gradient":
            g = g + wd * p
        m = b1 * given.moment("exp_avg") + (1 - b1 if self.m_averaged else 1.0) * g
        v = b2 * given.moment("exp_avg_sq") + (1 - b2 if self.v_averaged else 1.0) * g * g
        largest = v
        result = {"exp_avg": m, "exp_avg_sq": v}
        if given.option("amsgrad"):
            largest = torch.maximum(given.moment("max_exp_avg_sq"), v)
            result["max_exp_avg_sq"] = largest
        m_scale, v_scale = (1 - b1**t, 1 - b2**t) if self.corrected else (1.0, 1.0)
        if self.eps_inside:
            update = (m / m_scale) / (largest / v_scale + eps).sqrt()
        elif self.eps_scaled:
            update = (m / m_scale) * v_scale**0.5 / (largest.sqrt() + eps)
        else:
            update = (m / m_scale) / ((largest / v_scale).sqrt() + eps)
        if self.decay in ("before", "twice", "twice before"):
            p = p * (1 - lr * wd)
        if self.decay == "twice before":
            p = p * (1 - lr * wd)
        p = p - lr * update
        if self.decay in ("after", "twice"):
            p = p * (1 - lr * wd)
        return {"parameter": p, **result}


def sgd(given: Inputs) -> Result:
    """Return the result of SGD with momentum, as PyTorch defines it: buf <- mu buf + (1 - damping) g, from g."""
    momentum, damping = given.option("momentum"), given.option("dampening")
    g = -given.g if given.option("maximize") else given.g
    g = g + given.group.weight_decay * given.p
    if not momentum:
        return {"parameter": given.p - given.group.lr * g}
    first = "momentum_buffer" not in given.state
    buffer = g if first else momentum * given.moment("momentum_buffer") + (1 - damping) * g
    step = g + momentum * buffer if given.option("nesterov") else buffer
    return {"parameter": given.p - given.group.lr * step, "momentum_buffer": buffer}


# The class of an optimizer, as it is recorded, and its rule.
RULES: Mapping[str, Rule] = {"AdamW": Adam(), "Adam": Adam(decay="in the gradient"), "SGD": sgd}


def rule_of(optimizer: str, group: Group) -> Rule | None:
    """Return the rule of an optimizer's class, or None if it is not known."""
    if optimizer == "Adam" and group.options.get("decoupled_weight_decay"):
        return RULES["AdamW"]
    return RULES.get(optimizer)


def wrong_rules(group: Group) -> Iterator[tuple[str, Rule]]:
    """Yield known mistakes in Adam's rule, each as a sentence and the rule."""
    if group.betas is None:
        return
    b1, b2 = group.betas
    yield "the decay is in the gradient (L2), as in Adam, not in AdamW", Adam(decay="in the gradient")
    yield "the decay comes after the update, on the new weights", Adam(decay="after")
    yield "the weights decay twice", Adam(decay="twice")
    yield "the weights decay twice", Adam(decay="twice before")
    yield "the weights do not decay", Adam(decay="none")
    yield "there is no bias correction", Adam(corrected=False)
    yield "eps is inside the square root", Adam(eps_inside=True)
    yield "eps is added before the bias correction", Adam(eps_scaled=True)
    yield "the first moment adds the gradient without the factor 1 - beta1", Adam(m_averaged=False)
    yield "the second moment adds the squared gradient without the factor 1 - beta2", Adam(v_averaged=False)
    yield "the betas are swapped", Adam(change=lambda g: replace(g, betas=(b2, b1)))
    for value in (0.9, 0.95, 0.98, 0.99, 0.999):
        if value != b2:
            yield f"the step used beta2 = {value}", Adam(change=lambda g, v=value: replace(g, betas=(b1, v)))  # type: ignore[misc]
        if value != b1:
            yield f"the step used beta1 = {value}", Adam(change=lambda g, v=value: replace(g, betas=(v, b2)))  # type: ignore[misc]
    for value in (1e-3, 1e-5, 1e-6, 1e-8):
        if value != group.eps:
            yield f"the step used eps = {value}", Adam(change=lambda g, v=value: replace(g, eps=v))  # type: ignore[misc]
    for value in (0.01, 0.1):
        if value != group.weight_decay:
            yield f"the step used a decay of {value}", Adam(change=lambda g, v=value: replace(g, weight_decay=v))  # type: ignore[misc]
