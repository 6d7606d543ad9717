"""How much faster is one arm than another: paired ratios of times, with the interval that the noise allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNRESOLVED"]

CONFIDENCE = 0.95
POWER = 0.8
TRIM = 0.2
# Below this a difference is not told apart from the place in memory that a model was built at: the order of
# building alone moves a ratio by 0.8% (measured on an A/A stream), and one process sees one such place.
EQUIVALENCE = 0.02
# Below five rounds nothing is cut, and below four the interval is too wide to say anything.
FEWEST_ROUNDS = 4
# Normal consistency: the median absolute deviation of a normal sample is 0.6745 of its standard deviation.
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True)
class Ratio:
    """Time of an arm over the time of the arm that it is held against; below 1 is faster.

    `low` and `high` bound it at 95%. `smallest_resolvable` is the least true change, as a fraction, that a run with
    this noise and these rounds would have told from no change four times in five.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    verdict: Verdict
    smallest_resolvable: float

    @property
    def half_width(self) -> float:
        """Half the interval's width, in log units: about the relative error of the ratio."""
        return math.log(self.high / self.low) / 2


def paired_ratio(arm: Sequence[float], against: Sequence[float]) -> Ratio:
    """Compare two arms round by round; `arm[i]` and `against[i]` are the seconds of one interleaved round.

    The 20%-trimmed mean of the log-ratios with Yuen's standard error: one slow burst of a shared machine cannot
    move it (Yuen 1974; Tukey and McLaughlin 1963 for one sample). Raises ValueError below FEWEST_ROUNDS.
    """
    if len(arm) != len(against):
        raise ValueError(f"{len(arm)} rounds against {len(against)}: ratios are taken round by round")
    if len(arm) < FEWEST_ROUNDS:
        raise ValueError(f"{len(arm)} rounds; an interval needs at least {FEWEST_ROUNDS}")
    logs = sorted(math.log(a / b) for a, b in zip(arm, against, strict=True))
    centre, error, freedom = trimmed_mean(logs)
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom)
    low, high = math.exp(centre - reach * error), math.exp(centre + reach * error)
    return Ratio(
        ratio=math.exp(centre),
        low=low,
        high=high,
        rounds=len(logs),
        verdict=judge(low, high),
        smallest_resolvable=math.expm1((reach + student_quantile(POWER, freedom)) * error),
    )


def judge(low: float, high: float) -> Verdict:
    """What an interval of the ratio says. SAME is a finding (all within 2% of 1), UNRESOLVED is the lack of one."""
    if high <= 1 + EQUIVALENCE and low >= 1 / (1 + EQUIVALENCE):
        return "SAME"
    if high < 1:
        return "FASTER"
    if low > 1:
        return "SLOWER"
    return "UNRESOLVED"


def trimmed_mean(values: Sequence[float]) -> tuple[float, float, int]:
    """The 20%-trimmed mean, its standard error, and the degrees of freedom of its t statistic."""
    ordered = sorted(values)
    n = len(ordered)
    cut = int(TRIM * n)
    kept = ordered[cut : n - cut]
    # Winsorized: what is cut off counts as the last value that is kept, else the error would be too small.
    winsorized = [kept[0]] * cut + kept + [kept[-1]] * cut
    middle = math.fsum(winsorized) / n
    squares = math.fsum((value - middle) ** 2 for value in winsorized)
    h = len(kept)
    return math.fsum(kept) / h, math.sqrt(squares / (h * (h - 1))), h - 1


def student_quantile(probability: float, freedom: int) -> float:
    """The value that a Student t variable with `freedom` degrees stays below with `probability` (at least 0.5)."""
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability {probability}: expected 0.5 <= probability < 1")
    # Bisection on the angle atan(t / sqrt(freedom)), which is bounded where t is not.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if (1 + _within(angle, freedom)) / 2 < probability:
            low = angle
        else:
            high = angle
    return math.tan(low) * math.sqrt(freedom)


def _within(angle: float, freedom: int) -> float:
    """P(|t| < sqrt(freedom) * tan(angle)) for whole degrees of freedom: Abramowitz and Stegun 26.7.3 and 26.7.4."""
    cosine_squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine_squared * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return (angle + total) * 2 / math.pi if odd else total


def median(values: Sequence[float]) -> float:
    """The middle value."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Sequence[float]) -> float:
    """A standard deviation that bursts do not move: the median absolute deviation, scaled to a normal's sigma."""
    centre = median(values)
    return MAD_TO_SIGMA * median([abs(value - centre) for value in values])


def describe_seconds(middle: float, around: float) -> str:
    """`1.427 ± 0.026 s`, as pyperf and hyperfine write it: two digits of the spread, and no more of the middle."""
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")) if middle * s >= 1), (1e9, "ns"))
    middle, around = middle * scale, around * scale
    digits = 3 if around <= 0 else 1 - math.floor(math.log10(around))
    places = min(max(digits, 0), 3)
    return f"{middle:.{places}f} ± {around:.{places}f} {unit}"


def describe_ratio(ratio: Ratio) -> str:
    """`1.31x slower [1.28, 1.34]`, `2.40x faster [2.31, 2.50]`, `same within 1.3%`, or `not resolved`."""
    match ratio.verdict:
        case "SLOWER":
            return f"{ratio.ratio:.2f}x slower [{ratio.low:.2f}, {ratio.high:.2f}]"
        case "FASTER":
            return f"{1 / ratio.ratio:.2f}x faster [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
        case "SAME":
            return f"same within {max(ratio.high, 1 / ratio.low) - 1:.1%} [{ratio.low:.3f}, {ratio.high:.3f}]"
        case _:
            told = f"not resolved [{ratio.low:.2f}, {ratio.high:.2f}] in {ratio.rounds} rounds"
            if ratio.smallest_resolvable > 1:
                return told
            return f"{told}, which would have shown a change of {ratio.smallest_resolvable:.0%}"
