"""Variants of the MLP as a whole: gated, as in Llama; `mlp.c_gate` is the matrix that the activation is applied to."""

from __future__ import annotations

import functools
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation
from harness.oracle.variants.variant import Variant


def gated(at: At, x: Tensor, activation: Operation | None = None) -> Any:
    """Multiply the first projection with the activated gate, as in Shazeer 2020."""
    gate = at.do("mlp.c_gate", x)
    activated = at.do("mlp.activation", gate) if activation is None else activation(at, gate)
    return at.do("mlp.c_proj", activated * at.do("mlp.c_fc", x))


def gated_by(activation: Operation) -> Operation:
    """Return the gated MLP with another activation than GPT-2's."""
    return functools.partial(gated, activation=activation)


# at; x (B, T, C) -> (B, T, C)
GATED_MLP = (
    Variant("swiglu", "mlp", "the MLP is gated with SiLU (SwiGLU), where GPT-2 has one projection and a GELU", gated_by(lambda at, x: F.silu(x))),
    Variant("geglu", "mlp", "the MLP is gated with the tanh GELU (GeGLU), where GPT-2 has one projection and a GELU", gated_by(lambda at, x: F.gelu(x, approximate="tanh"))),
    Variant("geglu", "mlp", "the MLP is gated with the exact GELU (GeGLU), where GPT-2 has one projection and a GELU", gated_by(lambda at, x: F.gelu(x))),
    Variant("reglu", "mlp", "the MLP is gated with ReLU (ReGLU), where GPT-2 has one projection and a GELU", gated_by(lambda at, x: x.relu())),
    Variant("glu", "mlp", "the MLP is gated with a sigmoid (GLU), where GPT-2 has one projection and a GELU", gated_by(lambda at, x: x.sigmoid())),
)  # fmt: skip
