"""Paired ratios of times with their intervals and verdicts, and the spread between identical arms."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal, NamedTuple

Verdict = Literal["FASTER", "SLOWER", "SAME", "UNRESOLVED"]

CONFIDENCE = 0.95
POWER = 0.8
TRIM = 0.2
# The effect at 95% of where in memory an arm was built: the ratios of 33 pairs of arms with known ratios were off by
# 0.9% (one sigma) beyond the noise of their rounds. One process sees one such placement.
PLACED = 0.02
# A difference that people act on: arms that certainly differ by less are the same.
EQUIVALENCE = 0.05
# Below five rounds nothing is trimmed, and below four the interval is too wide to be of use.
FEWEST_ROUNDS = 4
# A round is busy if the product of both arms' times exceeds the lower quartile by this factor. Leaving out such rounds
# raised the share of 5% slowdowns found on two recorded streams of identical calls from 85% to 91% and from 40% to 65%;
# on a third it fell by 2%. The rate of false alarms did not change.
BUSY = 1.4
MANY = 1000  # degrees of freedom at which Student's t equals the normal distribution to three digits
# Normal consistency: the median absolute deviation of a normal sample is 0.6745 of its standard deviation.
MAD_TO_SIGMA = 1.4826
# Warming up: the fewest calls that can show that the times settled, and by how much later calls may still be faster.
# Half of eight calls has a second best, so neither one slow call nor one fast call decides.
FEWEST_WARM = 8
STEADY = 0.05


@dataclass(frozen=True)
class Ratio:
    """The time of an arm over the time of its baseline; below 1 is faster.

    low, high: the interval at 95% for these two builds. Other builds lie elsewhere in memory, which moves the ratio by
        about 1%; `verdict`, `p` and `smallest_resolvable` allow for that.
    rounds: all rounds, including those that were left out because the machine was busy.
    smallest_resolvable: the smallest true change, as a fraction, that a run with this noise and these rounds would have
        distinguished from no change with a probability of 80%.
    p: the two-sided probability of a ratio at least this far from 1 if there is no difference.
    """

    ratio: float
    low: float
    high: float
    rounds: int
    verdict: Verdict
    smallest_resolvable: float
    p: float

    @property
    def half_width(self) -> float:
        """Half of the interval's width in log units: about the relative error of the ratio."""
        return math.log(self.high / self.low) / 2


class Estimate(NamedTuple):
    """The logarithm of a ratio, its standard error, and the degrees of freedom behind that."""

    centre: float
    error: float
    freedom: int


def log_ratio(arm: Sequence[float], baseline: Sequence[float]) -> Estimate:
    """Return the trimmed mean of the rounds' log-ratios, without the rounds in which the machine was plainly busy."""
    pairs = quiet_rounds(list(zip(arm, baseline, strict=True)))
    return Estimate(*trimmed_mean([math.log(a / b) for a, b in pairs]))


def paired_ratio(arm: Sequence[float], baseline: Sequence[float], *, effect: float = EQUIVALENCE) -> Ratio:
    """Compare two arms round by round: `arm[i]` and `baseline[i]` are the seconds of one interleaved round.

    The estimate is the 20%-trimmed mean of the log-ratios with Yuen's standard error, which one slow burst of a shared
    machine cannot move (Yuen 1974; Tukey and McLaughlin 1963 for one sample). Rounds in which the machine was plainly
    busy are left out, but `rounds` counts them. `effect` is the difference that the verdict is about. Raises ValueError
    for lists of different lengths and for fewer than FEWEST_ROUNDS rounds.
    """
    if len(arm) != len(baseline):
        raise ValueError(f"{len(arm)} rounds against {len(baseline)}: ratios are taken round by round")
    if len(arm) < FEWEST_ROUNDS:
        raise ValueError(f"{len(arm)} rounds; an interval needs at least {FEWEST_ROUNDS}")
    centre, error, freedom = estimate = log_ratio(arm, baseline)
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom)
    low, high = math.exp(centre - reach * error), math.exp(centre + reach * error)
    return Ratio(
        ratio=math.exp(centre),
        low=low,
        high=high,
        rounds=len(arm),
        verdict=interval_verdict(low, high, effect),
        smallest_resolvable=math.expm1(_with_placement(reach * error) + student_quantile(POWER, freedom) * error),
        p=p_value(estimate),
    )


def quiet_rounds(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the rounds whose product is at most 1.4 times the lower quartile's, and at least FEWEST_ROUNDS rounds.

    They are chosen by the product of both arms' times, never by one arm. Because the turns are in random order, the
    product says nothing about which arm was faster: leaving rounds out narrows the interval and moves no ratio.
    """
    products = sorted(a * b for a, b in pairs)
    most = max(_busy_threshold(products), products[FEWEST_ROUNDS - 1])
    return [(a, b) for a, b in pairs if a * b <= most]


def busy_rounds(pairs: Sequence[tuple[float, float]]) -> int:
    """Return the number of rounds in which the machine was plainly busy, whether they count or not."""
    products = sorted(a * b for a, b in pairs)
    return sum(product > _busy_threshold(products) for product in products)


def _busy_threshold(products: Sequence[float]) -> float:
    return BUSY * products[len(products) // 4]


def interval_verdict(low: float, high: float, effect: float = EQUIVALENCE) -> Verdict:
    """Return the verdict for an interval of the ratio.

    FASTER and SLOWER are further from 1 than the interval and the placement in memory, in quadrature, account for. SAME
    means that the whole interval is within `effect` of 1. UNRESOLVED means that the comparison is inconclusive.
    """
    centre, reach = math.log(low * high) / 2, math.log(high / low) / 2
    if abs(centre) > _with_placement(reach):
        return "FASTER" if centre < 0 else "SLOWER"
    return "SAME" if high <= 1 + effect and low >= 1 / (1 + effect) else "UNRESOLVED"


def deciding_half_width(effect: float) -> float:
    """Return the half-width of an interval, in log units, that always decides about `effect`, a fraction.

    An interval so narrow is further from 1 than itself and the placement in memory account for, or it is within
    `effect` of 1. Raises ValueError for an effect that is no larger than the placement's.
    """
    if not effect > PLACED:
        raise ValueError(f"effect {effect}: one process shows no difference below {PLACED:.0%}")
    # The largest reach r for which hypot(r, placement) + r is at most the effect.
    wanted, placement = math.log1p(effect), math.log1p(PLACED)
    return (wanted**2 - placement**2) / (2 * wanted)


def _with_placement(reach: float) -> float:
    return math.hypot(reach, math.log1p(PLACED))


# One sigma of the effect of the placement in memory on the logarithm of a ratio.
PLACEMENT = math.log1p(PLACED) / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Scatter(NamedTuple):
    """The spread between identical arms beyond the noise of their rounds.

    `sigma` is one sigma of the log-ratio. `pairs` is the number of pairs that it was estimated from: infinity for the
    known spread of a quiet machine.
    """

    sigma: float
    pairs: float


QUIET = Scatter(PLACEMENT, math.inf)


def p_value(estimate: Estimate, scatter: Scatter = QUIET) -> float:
    """Return the probability of a ratio at least this far from 1 if there is no difference.

    The variance is that of the rounds plus that of the spread between identical arms, with Welch and Satterthwaite's
    degrees of freedom.
    """
    centre, error, freedom = estimate
    variance = error**2 + scatter.sigma**2
    uncertainty = error**4 / freedom + scatter.sigma**4 / scatter.pairs
    total_freedom = min(MANY, variance**2 / uncertainty) if uncertainty else MANY
    return two_sided_p(centre, math.sqrt(variance), max(1, int(total_freedom)))


def scatter(twins: Sequence[Estimate]) -> Scatter:
    """Return the spread between the identical arms of a run, beyond the noise of their rounds.

    It is at least QUIET, which was measured on a quiet machine. On a busy machine a build may be slower by several
    percent for as long as it lives. This is the moment estimator of a random effect, in which precise pairs weigh more
    (DerSimonian and Laird 1986), around a mean that is known to be 0.
    """
    weights = [1 / (error**2 + PLACEMENT**2) for _, error, _ in twins]
    beyond = [centre**2 - error**2 for centre, error, _ in twins]
    found = math.fsum(w * b for w, b in zip(weights, beyond, strict=True)) / math.fsum(weights) if twins else 0.0
    return Scatter(math.sqrt(found), len(twins)) if found > PLACEMENT**2 else QUIET


def trimmed_mean(values: Sequence[float]) -> tuple[float, float, int]:
    """Return the 20%-trimmed mean, its standard error, and the degrees of freedom of its t statistic."""
    ordered = sorted(values)
    n = len(ordered)
    cut = int(TRIM * n)
    middle = ordered[cut : n - cut]
    # Winsorized: a value that is cut counts as the nearest one that is not, or the error would be too small.
    winsorized = [middle[0]] * cut + middle + [middle[-1]] * cut
    mean = math.fsum(winsorized) / n
    squares = math.fsum((value - mean) ** 2 for value in winsorized)
    h = len(middle)
    return math.fsum(middle) / h, math.sqrt(squares / (h * (h - 1))), h - 1


def two_sided_p(centre: float, error: float, freedom: int) -> float:
    """Return P(|t| >= |centre| / error) of a Student t with `freedom` degrees; below 1e-15 it is rounding."""
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return max(0.0, 1 - _probability_within(math.atan(abs(centre) / error / math.sqrt(freedom)), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return the p-values adjusted for their number, in the order given (Holm 1979).

    If every adjusted p of at most 0.05 is called a difference, one family in twenty has a false alarm anywhere in it.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def wilson_interval(found: int, trials: int) -> tuple[float, float]:
    """Return the 95% interval of a proportion of which `found` were seen in `trials` (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (found + z**2 / 2) / (trials + z**2)
    reach = z / (trials + z**2) * math.sqrt(found * (trials - found) / trials + z**2 / 4)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def warmed_up(seconds: Sequence[float]) -> int | None:
    """Return the number of calls before the times of a series settled, or None if they have not.

    The first k calls were warming up if the rest, at least as many and at least FEWEST_WARM, is steady: the lower
    quartile of its first half is at most 5% above that of its second half, and so is call k itself. Times that rise
    are settled: the machine got busier, and warming up does not change that.
    """
    for k in range(min(len(seconds) // 2, len(seconds) - FEWEST_WARM) + 1):
        middle = (k + len(seconds)) // 2
        level = (1 + STEADY) * _lower_quartile(seconds[middle:])
        if seconds[k] <= level and _lower_quartile(seconds[k:middle]) <= level:
            return k
    return None


def _lower_quartile(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 4]


@functools.cache
def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t with `freedom` degrees at `probability`.

    Raises ValueError unless 0.5 <= probability < 1.
    """
    if not 0.5 <= probability < 1:
        raise ValueError(f"probability {probability}: expected 0.5 <= probability < 1")
    # Bisection on the angle atan(t / sqrt(freedom)), which is bounded where t is not.
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        angle = (low + high) / 2
        if (1 + _probability_within(angle, freedom)) / 2 < probability:
            low = angle
        else:
            high = angle
    return math.tan(low) * math.sqrt(freedom)


def _probability_within(angle: float, freedom: int) -> float:
    """Return P(|t| < sqrt(freedom) * tan(angle)), for whole degrees of freedom.

    Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    cosine_squared = math.cos(angle) ** 2
    odd = freedom % 2
    term = math.sin(angle) * (math.cos(angle) if odd else 1.0)
    total = 0.0
    for k in range(freedom // 2):
        total += term
        term *= cosine_squared * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    return (angle + total) * 2 / math.pi if odd else total


def median(values: Sequence[float]) -> float:
    """Return the median."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def spread(values: Sequence[float]) -> float:
    """Return the median absolute deviation, scaled to a normal's sigma: a standard deviation that ignores bursts."""
    centre = median(values)
    return MAD_TO_SIGMA * median([abs(value - centre) for value in values])


def describe_seconds(middle: float, around: float) -> str:
    """Return a time with its spread, as pyperf and hyperfine write it: `1.427 ± 0.026 s`.

    Two digits of the spread, and as many decimals of the time.
    """
    scale, unit = next(((s, u) for s, u in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")) if middle * s >= 1), (1e9, "ns"))
    middle, around = middle * scale, around * scale
    digits = 3 if around <= 0 else 1 - math.floor(math.log10(around))
    places = min(max(digits, 0), 3)
    return f"{middle:.{places}f} ± {around:.{places}f} {unit}"


def describe_ratio(ratio: Ratio) -> str:
    """Return a ratio with its interval: `1.31x slower [1.28, 1.34]`, `same within 1.3% [0.990, 1.013]`.

    An inconclusive ratio says so, with the change that the rounds would have shown: `1.02x slower [0.95, 1.09],
    inconclusive: 12 rounds would have shown a change of 9%`.
    """
    if ratio.verdict == "SAME":
        return f"same within {max(ratio.high, 1 / ratio.low) - 1:.1%} [{ratio.low:.3f}, {ratio.high:.3f}]"
    if ratio.ratio < 1:
        text = f"{1 / ratio.ratio:.2f}x faster [{1 / ratio.high:.2f}, {1 / ratio.low:.2f}]"
    else:
        text = f"{ratio.ratio:.2f}x slower [{ratio.low:.2f}, {ratio.high:.2f}]"
    if ratio.verdict != "UNRESOLVED":
        return text
    if ratio.smallest_resolvable > 1:
        return f"{text}, inconclusive after {ratio.rounds} rounds"
    return f"{text}, inconclusive: {ratio.rounds} rounds would have shown a change of {ratio.smallest_resolvable:.0%}"
