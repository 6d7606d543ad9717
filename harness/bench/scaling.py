"""Growth of a cost with size as the exponent of a power law, and the calls after which compiling has paid off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.bench.statistics import CONFIDENCE, student_quantile, trimmed_mean

# A wider half-width does not distinguish linear from quadratic growth with a margin.
WIDEST = 0.25
# Exponents are printed with two digits. Times need more slack: they contain costs that no closed form counts (calls,
# caches).
SLACK = 0.005


@dataclass(frozen=True)
class Exponent:
    """The exponent k of y = c x^k over `points` sizes, with its 95% interval (infinite if nothing bounds it)."""

    value: float
    low: float
    high: float
    points: int

    @property
    def half_width(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def exponent(points: Mapping[float, Sequence[float]]) -> Exponent:
    """Fit y = c x^k by least squares in logarithms.

    points: the values at each size: block minima, or one exact count.

    Two errors bound k, and the interval is the wider of the two: the noise of the values, carried through the fit (the
    trimmed mean of each size and Yuen's error), and from three sizes on the scatter of the sizes around the law, which
    is the only error of exact counts. Raises ValueError for fewer than two sizes and for values that are not positive.
    """
    _check_points(points)
    centres, errors, freedoms = zip(*(_level(values) for values in points.values()), strict=True)
    weights = _weights(list(points))
    k = math.fsum(w * y for w, y in zip(weights, centres, strict=True))
    parts = [(w * error) ** 2 for w, error in zip(weights, errors, strict=True)]
    reaches = [_noise_reach(parts, freedoms)]
    if len(points) > 2:
        reaches.append(_scatter_reach(list(points), centres, k))
    reach = max(reaches) if len(points) > 2 or any(parts) else math.inf
    return Exponent(k, k - reach, k + reach, len(points))


def expected_exponent(points: Mapping[float, float]) -> float:
    """Return the exponent of the same fit to a closed form's values.

    A closed form such as a T² + b T has an exponent only over given sizes.
    """
    _check_points({x: [y] for x, y in points.items()})
    return math.fsum(w * math.log(y) for w, y in zip(_weights(list(points)), points.values(), strict=True))


def exponent_verdict(
    found: Exponent, expected: float, *, slack: float = SLACK
) -> Literal["pass", "fail", "unresolved"]:
    """Return "fail" if the interval, widened by `slack`, excludes the expected exponent.

    An interval that includes it is a "pass", or "unresolved" if its half-width is above WIDEST.
    """
    if not found.low - slack <= expected <= found.high + slack:
        return "fail"
    return "pass" if found.half_width <= WIDEST else "unresolved"


def describe_exponent(found: Exponent, *, axis: str = "T") -> str:
    """Return the exponent with its interval: `T^1.98 [1.96, 2.00]`."""
    if math.isinf(found.half_width):
        return f"{axis}^{found.value:.2f} (from {found.points} sizes: no interval)"
    return f"{axis}^{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def break_even(compile_seconds: float, eager_seconds: float, compiled_seconds: float) -> int | None:
    """Return the calls after which compiling has cost less than not compiling; None if a compiled call is no faster."""
    saved = eager_seconds - compiled_seconds
    return math.ceil(compile_seconds / saved) if saved > 0 else None


def _check_points(points: Mapping[float, Sequence[float]]) -> None:
    if len(points) < 2:
        raise ValueError(f"{len(points)} sizes: an exponent needs at least two")
    for x, values in points.items():
        if not values or min(x, *values) <= 0:
            raise ValueError(f"size {x} with values {list(values)[:3]}: expected positive numbers")


def _level(values: Sequence[float]) -> tuple[float, float, int]:
    """Return the trimmed mean of the logarithms, its standard error and its degrees of freedom.

    A single value counts as exact.
    """
    logs = [math.log(value) for value in values]
    return trimmed_mean(logs) if len(logs) > 1 else (logs[0], 0.0, 0)


def _weights(sizes: Sequence[float]) -> list[float]:
    """Return the weight of each size's logarithm of y in the slope."""
    logs = [math.log(size) for size in sizes]
    middle = math.fsum(logs) / len(logs)
    squares = math.fsum((x - middle) ** 2 for x in logs)
    return [(x - middle) / squares for x in logs]


def _noise_reach(parts: Sequence[float], freedoms: Sequence[int]) -> float:
    """Return the half-width that the noise of the values causes; degrees of freedom by Welch and Satterthwaite.

    `parts` are the variances that the sizes add to k.
    """
    variance = math.fsum(parts)
    if variance == 0:
        return 0.0
    spread = math.fsum(part**2 / freedom for part, freedom in zip(parts, freedoms, strict=True) if part)
    return student_quantile((1 + CONFIDENCE) / 2, max(1, int(variance**2 / spread))) * math.sqrt(variance)


def _scatter_reach(sizes: Sequence[float], centres: Sequence[float], k: float) -> float:
    """Return the half-width that the distances of the sizes from the fitted law cause."""
    xs = [math.log(size) for size in sizes]
    middle_x, middle_y = math.fsum(xs) / len(xs), math.fsum(centres) / len(xs)
    residuals = [y - middle_y - k * (x - middle_x) for x, y in zip(xs, centres, strict=True)]
    freedom = len(xs) - 2
    squares = math.fsum((x - middle_x) ** 2 for x in xs)
    error = math.sqrt(math.fsum(r**2 for r in residuals) / freedom / squares)
    return student_quantile((1 + CONFIDENCE) / 2, freedom) * error
