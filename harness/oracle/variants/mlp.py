"""Variants of the MLP: its two linear layers and the activation between them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation, operation_of
from harness.oracle.variants.linear import linear_variants
from harness.oracle.variants.variant import Variant

GELU_SLOPE = math.sqrt(2 / math.pi)  # 0.7978845608


def tanh_gelu(slope: float = GELU_SLOPE, cubic: float = 0.044715, power: int = 3, half: float = 0.5) -> Operation:
    """Return the tanh GELU, half · x · (1 + tanh(slope · (x + cubic · x^power))). The defaults are GPT-2's."""
    return lambda at, x: half * x * (1 + torch.tanh(slope * (x + cubic * x.pow(power))))


def gelu(x: Tensor) -> Tensor:
    """Return GPT-2's own activation."""
    return F.gelu(x, approximate="tanh")


def with_output_clamped(bound: float) -> Operation:
    """Return the GELU with its output clamped from above."""
    return lambda at, x: gelu(x).clamp(max=bound)


def with_input_clamped(bound: float) -> Operation:
    """Return the GELU with its input clamped to ±bound."""
    return lambda at, x: gelu(x.clamp(-bound, bound))


def gelu_after_c_proj(at: At, x: Tensor) -> Tensor:
    """Apply a second GELU to the MLP's output."""
    return gelu(operation_of("mlp.c_proj")(at, x))


def clamped(bound: float) -> tuple[Variant, Variant]:
    """Return the two ways to clamp the activation: its output from above, and its input to ±bound."""
    return (
        Variant(
            "gelu-clamped", "mlp.activation", f"the activation is clamped at {bound:g}", with_output_clamped(bound)
        ),
        Variant(
            "gelu-clamped",
            "mlp.activation",
            f"the activation's input is clamped to ±{bound:g}",
            with_input_clamped(bound),
        ),
    )


# at; x (B, T, 4C) -> (B, T, 4C)
ACTIVATION = (
    Variant("gelu-erf-for-tanh", "mlp.activation", "the exact (erf) GELU, where GPT-2 has the tanh approximation", lambda at, x: F.gelu(x)),
    Variant("gelu-sigmoid-approx", "mlp.activation", "QuickGELU, x · sigmoid(1.702 x), where GPT-2 has the tanh GELU", lambda at, x: x * (1.702 * x).sigmoid()),
    Variant("mlp-relu", "mlp.activation", "ReLU, where GPT-2 has the tanh GELU", lambda at, x: x.relu()),
    Variant("mlp-silu", "mlp.activation", "SiLU, where GPT-2 has the tanh GELU", lambda at, x: F.silu(x)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.44715 instead of 0.044715", tanh_gelu(cubic=0.44715)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.0044715 instead of 0.044715", tanh_gelu(cubic=0.0044715)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.044175 instead of 0.044715", tanh_gelu(cubic=0.044175)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.0447 instead of 0.044715", tanh_gelu(cubic=0.0447)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.04715 instead of 0.044715", tanh_gelu(cubic=0.04715)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU without its cubic term", tanh_gelu(cubic=0.0)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with x² instead of x³", tanh_gelu(power=2)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU without its factor 0.5", tanh_gelu(half=1.0)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 2/pi instead of sqrt(2/pi)", tanh_gelu(slope=2 / math.pi)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with sqrt(pi/2) instead of sqrt(2/pi)", tanh_gelu(slope=math.sqrt(math.pi / 2))),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 1/sqrt(2 pi) instead of sqrt(2/pi)", tanh_gelu(slope=1 / math.sqrt(2 * math.pi))),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU without sqrt(2/pi)", tanh_gelu(slope=1.0)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.8 instead of sqrt(2/pi) = 0.7979", tanh_gelu(slope=0.8)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.79 instead of sqrt(2/pi) = 0.7979", tanh_gelu(slope=0.79)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.798 instead of sqrt(2/pi) = 0.79788", tanh_gelu(slope=0.798)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.7978 instead of sqrt(2/pi) = 0.79788", tanh_gelu(slope=0.7978)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU with 0.7979 instead of sqrt(2/pi) = 0.79788", tanh_gelu(slope=0.7979)),
    Variant("gelu-coefficient-typo", "mlp.activation", "the tanh GELU without the 1 that is added to its tanh", lambda at, x: 0.5 * x * torch.tanh(GELU_SLOPE * (x + 0.044715 * x.pow(3)))),
    Variant("mlp-activation-missing", "mlp.activation", "there is no activation between the two projections", lambda at, x: x),
    Variant("activation-wrong", "mlp.activation", "tanh, where GPT-2 has the tanh GELU", lambda at, x: x.tanh()),
    Variant("activation-wrong", "mlp.activation", "a sigmoid, where GPT-2 has the tanh GELU", lambda at, x: x.sigmoid()),
    Variant("activation-wrong", "mlp.activation", "ELU, where GPT-2 has the tanh GELU", lambda at, x: F.elu(x)),
    Variant("activation-wrong", "mlp.activation", "leaky ReLU, where GPT-2 has the tanh GELU", lambda at, x: F.leaky_relu(x)),
    Variant("activation-wrong", "mlp.activation", "softplus, where GPT-2 has the tanh GELU", lambda at, x: F.softplus(x)),
    Variant("activation-wrong", "mlp.activation", "Mish, where GPT-2 has the tanh GELU", lambda at, x: F.mish(x)),
    Variant("activation-wrong", "mlp.activation", "SELU, where GPT-2 has the tanh GELU", lambda at, x: F.selu(x)),
    Variant("activation-wrong", "mlp.activation", "hard swish, where GPT-2 has the tanh GELU", lambda at, x: F.hardswish(x)),
    Variant("activation-wrong", "mlp.activation", "ReLU6, where GPT-2 has the tanh GELU", lambda at, x: F.relu6(x)),
    Variant("activation-wrong", "mlp.activation", "squared ReLU, where GPT-2 has the tanh GELU", lambda at, x: x.relu().pow(2)),
    Variant("activation-twice", "mlp.activation", "the GELU is applied twice", lambda at, x: gelu(gelu(x))),
    *(Variant("gelu-coefficient-typo", "mlp.activation", f"the tanh GELU with {round(GELU_SLOPE, digits)} instead of sqrt(2/pi) = 0.7978845608", tanh_gelu(slope=round(GELU_SLOPE, digits))) for digits in (7, 6, 5)),
    # With eight digits or more, the rounded constant is within float32's own precision.
    *(Variant("gelu-constant-rounded", "mlp.activation", f"sqrt(2/pi) = {round(GELU_SLOPE, digits)} is written with {digits} digits", tanh_gelu(slope=round(GELU_SLOPE, digits)), harmless=True) for digits in (8, 9, 10, 11, 12)),
    *(variant for bound in (1.0, 2.0, 3.0, 5.0, 6.0, 10.0) for variant in clamped(bound)),
)  # fmt: skip

MLP = (
    *linear_variants("mlp.c_fc", "mlp.c_fc", bias_missing="mlp-bias-dropped"),
    *linear_variants("mlp.c_proj", "mlp.c_proj", bias_missing="mlp-out-bias-dropped"),
    *ACTIVATION,
    Variant("mlp-activation-twice", "mlp.c_proj", "a second GELU follows mlp.c_proj", gelu_after_c_proj),
)
