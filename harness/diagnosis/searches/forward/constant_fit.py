"""Relations fitted to a value that no variant gives: a constant, or where it differs from GPT-2's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from harness.diagnosis.searches.forward import where
from harness.oracle.formula import EPSILON, At
from harness.oracle.variants import Variant
from harness.oracle.variants.layer_norm import applied, rms_norm, rms_norm_says, with_epsilon

FITS = 1e-9  # relative; a fitted constant leaves this much, a wrong relation leaves far more


def epsilon(name: str, at: At, x: Tensor, found: Iterable[Tensor]) -> Iterator[Variant]:
    """Yield the LayerNorm, or the RMSNorm, with the epsilon that turns `x` (B, T, C) into one of the values found."""
    gain, bias = at[f"{name}.weight"], at[f"{name}.bias"]
    centred, variance = x - x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    for value in found:
        if (fitted := _epsilon(value, centred, variance, gain, bias)) is not None:
            fault = "ln-eps-too-large" if fitted > 10 * EPSILON * (1 + 1e-6) else "ln-eps-wrong"
            says = f"{name}'s epsilon is {fitted:.4g}, not 1e-5"
            yield Variant(fault, name, says, applied(name, with_epsilon(fitted)))
        elif (fitted := _epsilon(value, x, x.pow(2).mean(-1, keepdim=True), gain, torch.zeros_like(bias))) is not None:
            yield Variant("rms-norm", name, rms_norm_says(fitted).format(norm=name), applied(name, rms_norm(fitted)))


def _epsilon(value: Tensor, numerator: Tensor, square: Tensor, gain: Tensor, bias: Tensor) -> float | None:
    """Return e where value = numerator / sqrt(square + e) · gain + bias; None if there is no such e."""
    estimates = (numerator * gain / (value - bias)).pow(2) - square
    fitted = float(estimates.nanmedian())
    if not fitted > 0 or not math.isfinite(fitted):
        return None
    return fitted if _close(value, numerator / (square + fitted).sqrt() * gain + bias) else None


def factor(name: str, expected: Tensor, found: Iterable[Tensor]) -> str:
    """Return the sentence about the constant by which one of the values found is a multiple of the expected one."""
    size = float((expected * expected).sum())
    for value in found:
        constant = float((value * expected).sum()) / max(size, 1e-300)
        if abs(constant) > 1e-6 and abs(constant - 1) > FITS and _close(value, constant * expected):
            return f"{name} is GPT-2's times {constant:.6g}"
    return ""


def scaled(expected: Tensor, found: Iterable[Tensor], right: float) -> Iterator[Variant]:
    """Yield the factor on the scores, for subjects whose scaled scores are among the values found.

    `right` is GPT-2's factor, 1/sqrt(head size).
    """
    for value in found:
        constant = float((value * expected).sum()) / max(float((expected * expected).sum()), 1e-300)
        if abs(constant) > 1e-6 and abs(constant - 1) > FITS and _close(value, constant * expected):
            yield _score_factor(constant * right, right)


def scale(attend: Callable[[float], Tensor], found: list[Tensor], right: float) -> Iterator[Variant]:
    """Yield the factor on the scores with which attention gives one of the values found.

    `attend(factor)` is attention's output (B, H, T, D). The factor is searched from e^-5 to e^5 times `right`, on a
    grid of e^(1/8), and then refined by golden-section search.
    """

    if not found:
        return
    values = torch.stack(found)

    def distance(exponent: float) -> float:
        furthest = (values - attend(math.exp(exponent))).abs().flatten(1).amax(1)
        return float(furthest.nan_to_num(nan=math.inf).min())

    grid = [math.log(right) + step / 8 for step in range(-40, 41)]
    middle = min(grid, key=distance)
    low, high = middle - 1 / 8, middle + 1 / 8
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):  # 0.618^60 of 1/4 is less than 1e-12
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if distance(a) < distance(b) else (a, high)
    best = (low + high) / 2
    if distance(best) <= 1e-6 * max(float(value.abs().max()) for value in found):
        yield _score_factor(math.exp(best), right)


def _score_factor(factor: float, right: float) -> Variant:
    says = f"the scores are multiplied by {factor:.5g}, not by {right:.5g} = 1/sqrt(head size)"
    return Variant("scale-wrong", "attn.scale", says, lambda at, scores: scores * factor)


def offset(name: str, expected: Tensor, found: Iterable[Tensor]) -> str:
    """Return the sentence if one of the values found differs by one constant for each channel."""
    for value in found:
        difference = (value - expected).flatten(0, -2)
        if (
            len(difference) > 1
            and bool(torch.isfinite(difference).all())
            and _close(value, expected + difference.mean(0))
        ):
            return f"{name} is GPT-2's plus one constant for each channel, as a bias would be"
    return ""


def where_it_differs(expected: Tensor, found: Iterable[Tensor], ids: Tensor, head_width: int) -> str:
    """Return at which rows, heads, positions, channels or tokens the nearest value found differs; "" if everywhere.

    `head_width`: of a value (B, T, C) whose channels are heads side by side; 0 for another.
    """
    best, share = None, 0.2
    for value in found:
        equal = (value - expected).abs() <= FITS * expected.abs().max()
        if share < float(equal.double().mean()) < 1:
            best, share = ~equal, float(equal.double().mean())
    if best is None:
        return ""
    says = where.in_words(best, ids, head_width=head_width)
    return f"it differs only at {says}" if says else ""


def _close(found: Tensor, expected: Tensor) -> bool:
    """Return True if two values agree; never for a value that is one number everywhere, which says nothing."""
    size = float(expected.abs().max())
    varies = float(expected.max() - expected.min()) > FITS * size
    return varies and bool((found - expected).abs().max() <= FITS * size)
