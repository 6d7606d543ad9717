"""What can be said of a value that no listed explanation gives: a fitted constant, or how it stands to GPT-2's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.oracle.formula import EPSILON, At

FITS = 1e-9  # relative; a fitted constant leaves this much, a wrong idea leaves far more


@dataclass(frozen=True)
class Fit:
    """A relation that was found: the fault's id ("" where the relation is no named fault), and what it says."""

    fault: str
    says: str


def epsilon(name: str, at: At, x: Tensor, found: Iterable[Tensor]) -> Fit | None:
    """The epsilon with which a norm of `x` would give one of the values found."""
    gain, bias = at[f"{name}.weight"], at[f"{name}.bias"]
    centred, variance = x - x.mean(-1, keepdim=True), x.var(-1, keepdim=True, correction=0)
    for value in found:
        normed = (value - bias) / gain
        estimates = (centred / normed).pow(2) - variance
        fitted = float(estimates.median())
        if not fitted > 0 or not math.isfinite(fitted):
            continue
        again = centred / (variance + fitted).sqrt() * gain + bias
        if _close(value, again):
            fault = "ln-eps-too-large" if fitted > 10 * EPSILON * (1 + 1e-6) else "ln-eps-wrong"
            return Fit(fault, f"{name}'s epsilon is {fitted:.4g}, not 1e-5")
    return None


def factor(what: str, expected: Tensor, found: Iterable[Tensor]) -> Fit | None:
    """A constant by which one of the values found differs from the expected one."""
    size = float((expected * expected).sum())
    for value in found:
        constant = float((value * expected).sum()) / max(size, 1e-300)
        if abs(constant) > 1e-6 and abs(constant - 1) > FITS and _close(value, constant * expected):
            return Fit("", f"{what} is GPT-2's times {constant:.6g}")
    return None


def scaled(expected: Tensor, found: Iterable[Tensor], right: float) -> Fit | None:
    """The factor on the scores, where the scaled scores can be seen."""
    for value in found:
        constant = float((value * expected).sum()) / max(float((expected * expected).sum()), 1e-300)
        if abs(constant) > 1e-6 and _close(value, constant * expected):
            return _of_scores(constant * right, right)
    return None


def _of_scores(factor: float, right: float) -> Fit:
    return Fit("scale-wrong", f"the scores are multiplied by {factor:.5g}, not by {right:.5g} = 1/sqrt(head size)")


def scale(attend: Callable[[float], Tensor], found: list[Tensor], right: float) -> Fit | None:
    """The factor on the scores with which attention would give one of the values found; `attend(factor)`."""

    def distance(exponent: float) -> float:
        mixed = attend(math.exp(exponent))
        return min(float((value - mixed).abs().max()) for value in found)

    if not found:
        return None
    grid = [math.log(right) + step / 8 for step in range(-40, 41)]
    middle = min(grid, key=distance)
    low, high = middle - 1 / 8, middle + 1 / 8
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(60):
        a, b = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, b) if distance(a) < distance(b) else (a, high)
    best = (low + high) / 2
    if distance(best) > 1e-6 * max(float(value.abs().max()) for value in found):
        return None
    return _of_scores(math.exp(best), right)


def offset(what: str, expected: Tensor, found: Iterable[Tensor]) -> Fit | None:
    """A constant vector by which one of the values found differs, or one gain and one shift for each channel."""
    for value in found:
        difference = (value - expected).flatten(0, -2)
        if not bool(torch.isfinite(difference).all()):
            continue
        if _close(value, expected + difference.mean(0)):
            return Fit("", f"{what} is GPT-2's plus one constant for each channel, as a bias would be")
    return None


def where_it_differs(expected: Tensor, found: Iterable[Tensor]) -> str:
    """In which rows, positions or channels (of (B, T, C)) the nearest of the values found differs; "" if everywhere."""
    best, share = None, 0.2
    for value in found:
        equal = (value - expected).abs() <= FITS * expected.abs().max()
        if share < float(equal.double().mean()) < 1:
            best, share = ~equal, float(equal.double().mean())
    if best is None:
        return ""
    told = []
    for axis, word in ((0, "batch rows"), (1, "positions"), (2, "channels")):
        others = tuple(other for other in range(best.ndim) if other != axis)
        wrong = best.any(dim=others).nonzero().flatten().tolist()
        if len(wrong) < best.shape[axis]:
            told.append(f"{word} {_ranges(wrong)}")
    return f"it differs only at {', '.join(told)}" if told else ""


def _ranges(numbers: list[int]) -> str:
    """[0, 1, 2, 5] -> "0 to 2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told = [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs[:4]]
    return ", ".join(told) + (" ..." if len(runs) > 4 else "")


def _close(found: Tensor, expected: Tensor) -> bool:
    return bool((found - expected).abs().max() <= FITS * max(float(expected.abs().max()), 1e-300))
