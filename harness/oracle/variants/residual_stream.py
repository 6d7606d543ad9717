"""Variants of the two additions to the residual stream: attention's and the MLP's."""

from __future__ import annotations

import math

from harness.oracle.formula import Operation
from harness.oracle.variants.variant import Variant


def added_to_output_of(norm: str) -> Operation:
    """Return the addition whose skip connection starts after the norm instead of before it."""
    return lambda at, x, branch: at.formula.taps[f"h.{at.layer}.{norm}"] + branch


# The mistakes of either addition: id, sentence about the branch, function of at, x (B, T, C) and branch (B, T, C).
MISTAKES: tuple[tuple[str, str, Operation], ...] = (
    ("residual-{name}-missing", "there is no skip connection around {branch}", lambda at, x, branch: branch),
    ("{name}-branch-missing", "{branch} is not added to the residual stream", lambda at, x, branch: x),
    ("residual-sign", "{branch} is subtracted from the residual stream", lambda at, x, branch: x - branch),
    ("residual-doubled", "{branch} is added twice", lambda at, x, branch: x + 2 * branch),
    (
        "residual-doubled",
        "the residual stream is doubled where {branch} is added",
        lambda at, x, branch: 2 * x + branch,
    ),
)

SCALED: tuple[tuple[str, str, Operation], ...] = (
    ("residual-halved", "the sum after {branch} is halved", lambda at, x, branch: (x + branch) * 0.5),
    ("residual-halved", "{branch} is halved", lambda at, x, branch: x + 0.5 * branch),
    ("residual-halved", "the sum after {branch} is divided by sqrt(2)", lambda at, x, branch: (x + branch) * math.sqrt(0.5)),
    ("residual-halved", "{branch} is divided by sqrt(2)", lambda at, x, branch: x + math.sqrt(0.5) * branch),
    ("residual-halved", "{branch} is divided by sqrt(2 · layers) at every call, not once at initialisation", lambda at, x, branch: x + branch / math.sqrt(2 * at.size.layers)),
)  # fmt: skip


def _variants(name: str, branch: str, norm: str) -> tuple[Variant, ...]:
    """Return the variants of the addition `residual.{name}`; `norm` is the norm before that branch."""
    before = (
        "ln-before-residual",
        f"the skip connection around {{branch}} starts after {norm} instead of before it",
        added_to_output_of(norm),
    )
    return tuple(
        Variant(fault.format(name=name), f"residual.{name}", says.format(branch=branch), function)
        for fault, says, function in (*MISTAKES, before, *SCALED)
    )  # fmt: skip


RESIDUAL_STREAM = (*_variants("attn", "attention", "ln_1"), *_variants("mlp", "the MLP", "ln_2"))
