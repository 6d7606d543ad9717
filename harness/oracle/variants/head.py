"""Variants of the head: what is done to the logits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation, operation_of
from harness.oracle.variants.variant import Variant


def after_head(function: Callable[[Tensor], Tensor]) -> Operation:
    """Return GPT-2's head followed by `function(logits)`."""
    return lambda at, x: function(operation_of("head")(at, x))


def soft_capped(cap: float) -> Operation:
    """Return the head with its logits capped by a tanh."""
    return after_head(lambda logits: cap * (logits / cap).tanh())


def clamped(bound: float) -> Operation:
    """Return the head with its logits clamped to ±bound."""
    return after_head(lambda logits: logits.clamp(-bound, bound))


def divided_by_root_width(at: At, x: Tensor) -> Tensor:
    """Divide the logits by sqrt(C)."""
    logits: Tensor = operation_of("head")(at, x)
    return logits / math.sqrt(at.size.width)


def multiplied_by_root_width(at: At, x: Tensor) -> Tensor:
    """Multiply the logits by sqrt(C)."""
    logits: Tensor = operation_of("head")(at, x)
    return logits * math.sqrt(at.size.width)


def limited(bound: float) -> tuple[Variant, Variant]:
    """Return the two ways to limit the logits to ±bound."""
    return (
        Variant("logits-soft-capped", "head", f"the logits are soft-capped at {bound:g}", soft_capped(bound)),
        Variant("logits-clamped", "head", f"the logits are clamped to ±{bound:g}", clamped(bound)),
    )


# at; x (B, T, C) -> (B, T, V)
HEAD = (
    Variant("logits-activation", "head", "a ReLU is applied to the logits", after_head(lambda x: x.relu())),
    Variant("logits-softmax", "head", "a softmax is applied to the logits", after_head(lambda x: x.softmax(-1))),
    Variant("logits-activation", "head", "a log-softmax is applied to the logits", after_head(lambda x: x.log_softmax(-1))),
    Variant("logits-activation", "head", "a sigmoid is applied to the logits", after_head(lambda x: x.sigmoid())),
    Variant("logits-activation", "head", "a tanh is applied to the logits", after_head(lambda x: x.tanh())),
    Variant("logits-activation", "head", "a GELU is applied to the logits", after_head(lambda x: F.gelu(x, approximate="tanh"))),
    Variant("logits-activation", "head", "a GELU (erf) is applied to the logits", after_head(lambda x: F.gelu(x))),
    Variant("logits-low-precision", "head", "the logits are rounded to bfloat16", after_head(lambda x: x.bfloat16().to(x.dtype))),
    Variant("logits-low-precision", "head", "the logits are rounded to float16", after_head(lambda x: x.half().to(x.dtype))),
    Variant("logits-shifted", "head", "the logits are those of the position before", after_head(lambda x: x.roll(1, 1))),
    Variant("logits-shifted", "head", "the logits are those of the next position", after_head(lambda x: x.roll(-1, 1))),
    Variant("logits-normalised", "head", "the logits have their mean subtracted", after_head(lambda x: x - x.mean(-1, keepdim=True))),
    *(variant for bound in (5.0, 10.0, 15.0, 20.0, 30.0, 50.0) for variant in limited(bound)),
    Variant("logits-scaled", "head", "the logits are divided by sqrt(width)", divided_by_root_width),
    Variant("logits-scaled", "head", "the logits are multiplied by sqrt(width)", multiplied_by_root_width),
)  # fmt: skip
