"""Variants of the three LayerNorms: ln_1 and ln_2 of a block, and ln_f before the head."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import EPSILON, At, Operation, operation_of
from harness.oracle.variants.variant import Variant

Norm = Callable[[Tensor, Tensor, Tensor], Tensor]  # x (B, T, C), gain (C,), bias (C,) -> (B, T, C)


def normalise(
    x: Tensor,
    gain: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
    *,
    epsilon: float = EPSILON,
    axes: tuple[int, ...] = (-1,),
    centred: bool = True,
    correction: int = 0,
    outside: bool = False,
) -> Tensor:
    """Return LayerNorm of `x` (B, T, C). The defaults are GPT-2's; every argument is one possible mistake.

    Args:
        epsilon: Added to the variance.
        axes: The axes over which mean and variance are taken.
        centred: Whether the mean is subtracted. Without it, this is an RMS norm.
        correction: 1 for the unbiased variance (n - 1).
        outside: Whether epsilon is added to the standard deviation instead of to the variance.
    """
    mean = x.mean(axes, keepdim=True) if centred else 0.0
    variance = x.var(axes, keepdim=True, correction=correction) if centred else x.pow(2).mean(axes, keepdim=True)
    deviation = variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt()
    return (x - mean) / deviation * gain + bias


def gain_and_bias(at: At, norm: str) -> tuple[Tensor, Tensor]:
    """Return gain and bias (C,) of the norm called `ln_1`, `ln_2` or `ln_f`."""
    return at[f"{norm}.weight"], at[f"{norm}.bias"]


def applied(norm: str, function: Norm) -> Operation:
    """Return the operation that calls `function(x, gain, bias)` with the weights of `norm`."""
    return lambda at, x: function(x, *gain_and_bias(at, norm))


def with_epsilon(epsilon: float) -> Norm:
    """Return LayerNorm with another epsilon."""
    return lambda x, gain, bias: normalise(x, gain, bias, epsilon=epsilon)


def rms_norm(epsilon: float) -> Norm:
    """Return RMSNorm (Zhang and Sennrich 2019)."""
    return lambda x, gain, bias: normalise(x, gain, epsilon=epsilon, centred=False)


def rms_norm_says(epsilon: float) -> str:
    """Return the sentence about an RMSNorm with another epsilon than GPT-2's; 0 is any too small to be seen."""
    found = f"{epsilon:.4g}" if epsilon else "less than 1e-9 (without eps=, nn.RMSNorm takes the dtype's own)"
    return f"{{norm}} is an RMSNorm, which subtracts no mean and adds no bias; its epsilon is {found}, not 1e-5"


def over_axes(*axes: int) -> Norm:
    """Return LayerNorm with mean and variance over these axes of (B, T, C)."""
    return lambda x, gain, bias: normalise(x, gain, bias, axes=axes)


def unbiased(epsilon: float) -> Norm:
    """Return LayerNorm with the unbiased variance."""
    return lambda x, gain, bias: normalise(x, gain, bias, correction=1, epsilon=epsilon)


def epsilon_outside(epsilon: float, *, correction: int) -> Norm:
    """Return LayerNorm with epsilon added to the standard deviation."""
    return lambda x, gain, bias: normalise(x, gain, bias, outside=True, correction=correction, epsilon=epsilon)


def epsilon_after_division(epsilon: float) -> Norm:
    """Return LayerNorm with epsilon added to the quotient."""
    return lambda x, gain, bias: (normalise(x, epsilon=0.0) + epsilon) * gain + bias


def uncentred(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Divide by the standard deviation without subtracting the mean."""
    return x / (x.var(-1, keepdim=True, correction=0) + EPSILON).sqrt() * gain + bias


def undivided(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Subtract the mean without dividing by the standard deviation."""
    return (x - x.mean(-1, keepdim=True)) * gain + bias


def divided_by_variance(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Divide by the variance instead of its square root."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + EPSILON) * gain + bias


def in_bfloat16(x: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Compute the norm in bfloat16, and convert the result back."""
    return F.layer_norm(x.bfloat16(), x.shape[-1:], gain.bfloat16(), bias.bfloat16(), EPSILON).to(x.dtype)


# A mistake of any one of the three norms: id, sentence about the norm, function of x, gain and bias.
Mistake = tuple[str, str, Norm]


def unbiased_with_epsilon(epsilon: float) -> tuple[Mistake, Mistake]:
    """Return the unbiased variance with another epsilon, added inside and outside the square root."""
    outside = f"{{norm}} adds epsilon {epsilon:g} outside the square root, to the sample deviation"
    return (
        ("ln-unbiased-var", f"{{norm}} divides by the unbiased variance (n - 1), with epsilon {epsilon:g}", unbiased(epsilon)),
        ("ln-unbiased-var", outside, epsilon_outside(epsilon, correction=1)),
    )  # fmt: skip


MISTAKES: tuple[Mistake, ...] = (
    ("ln-missing", "{norm} is not applied", lambda x, gain, bias: x),
    ("ln-bias-ignored", "{norm}'s bias is not added", lambda x, gain, bias: normalise(x, gain)),
    ("ln-gain-ignored", "{norm}'s gain is not applied", lambda x, gain, bias: normalise(x, 1.0, bias)),
    ("ln-affine-ignored", "{norm} has neither gain nor bias", lambda x, gain, bias: normalise(x)),
    ("ln-gain-plus-one", "{norm} multiplies by 1 + gain", lambda x, gain, bias: normalise(x, 1 + gain, bias)),
    ("rms-norm", "{norm} is an RMSNorm: it divides by the root mean square, subtracts no mean and adds no bias", lambda x, gain, bias: normalise(x, gain, centred=False)),
    *(("rms-norm", rms_norm_says(epsilon), rms_norm(epsilon)) for epsilon in (1e-6, 1e-8, 0.0)),
    ("ln-no-mean-subtraction", "{norm} divides by the root mean square and subtracts no mean, but adds its bias", lambda x, gain, bias: normalise(x, gain, bias, centred=False)),
    ("ln-no-mean-subtraction", "{norm} divides by the standard deviation, but does not subtract the mean", uncentred),
    ("ln-no-variance", "{norm} subtracts the mean, but does not divide by the standard deviation", undivided),
    ("ln-divides-by-variance", "{norm} divides by the variance instead of its square root", divided_by_variance),
    *(("ln-eps-wrong", f"{{norm}}'s epsilon is {epsilon:g}, not 1e-5", with_epsilon(epsilon)) for epsilon in (1e-6, 1e-12, 1e-8, 1e-7, 1e-10, 0.0, 1e-4)),
    *(("ln-eps-too-large", f"{{norm}}'s epsilon is {epsilon:g}, not 1e-5", with_epsilon(epsilon)) for epsilon in (1e-3, 1e-2, 0.1, 1.0)),
    ("ln-unbiased-var", "{norm} divides by the unbiased variance (n - 1)", unbiased(1e-5)),
    ("ln-unbiased-var", "{norm} adds epsilon 1e-05 outside the square root, to the sample deviation", epsilon_outside(1e-5, correction=1)),
    *(mistake for epsilon in (1e-6, 1e-12, 1e-8, 0.0) for mistake in unbiased_with_epsilon(epsilon)),
    *(("ln-eps-outside-sqrt", f"{{norm}} adds epsilon {epsilon:g} outside the square root, to the population deviation", epsilon_outside(epsilon, correction=0)) for epsilon in (1e-5, 1e-6, 1e-12, 1e-8, 0.0)),
    *(("ln-eps-outside-sqrt", f"{{norm}} adds epsilon {epsilon:g} after the division", epsilon_after_division(epsilon)) for epsilon in (1e-5, 1e-6, 1e-12)),
    ("ln-wrong-axes-leak", "{norm} normalises over time and channels together: statistics of the future leak into the past", over_axes(-2, -1)),
    ("ln-wrong-axes-leak", "{norm} normalises over time, not over channels", over_axes(-2)),
    ("ln-wrong-axes-leak", "{norm} normalises over the batch", over_axes(0)),
    ("ln-wrong-axes-leak", "{norm} normalises over the batch, time and channels", over_axes(0, 1, 2)),
    ("ln-twice", "{norm} is applied twice", lambda x, gain, bias: normalise(normalise(x, gain, bias), gain, bias)),
    ("ln-low-precision", "{norm} is computed in bfloat16", in_bfloat16),
)  # fmt: skip

# Some of these mistakes have an id of their own in one of the norms.
IDS_OF_ONE_NORM = {
    ("ln-missing", "ln_1"): "ln-missing-before-attention",
    ("ln-missing", "ln_2"): "ln-missing-before-mlp",
    ("ln-missing", "ln_f"): "final-ln-missing",
    ("ln-affine-ignored", "ln_f"): "load-final-ln-left-at-init",
}


def with_weights_of(norm: str) -> Operation:
    """Return another norm of the same block, with its gain and bias."""
    return lambda at, x: operation_of(norm)(at, x)


def with_weights_of_last(norm: str) -> Operation:
    """Return a norm of the last block, with its gain and bias."""
    return lambda at, x: operation_of(norm)(at.at(at.size.layers - 1), x)


# at; x (B, T, C) -> (B, T, C)
LAYER_NORM = (
    *(Variant(IDS_OF_ONE_NORM.get((fault, norm), fault), norm, says.format(norm=norm), applied(norm, function)) for norm in ("ln_1", "ln_2", "ln_f") for fault, says, function in MISTAKES),
    Variant("load-ln-swapped", "ln_1", "ln_1 uses the gain and bias of ln_2", with_weights_of("ln_2")),
    Variant("ln-shared-in-block", "ln_2", "ln_2 uses the gain and bias of ln_1", with_weights_of("ln_1")),
    Variant("final-ln-reuses-block-ln", "ln_f", "the final norm uses the last block's ln_2", with_weights_of_last("ln_2")),
    Variant("final-ln-reuses-block-ln", "ln_f", "the final norm uses the last block's ln_1", with_weights_of_last("ln_1")),
)  # fmt: skip
