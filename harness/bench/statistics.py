"""How much faster is one arm than another: paired ratios of times, with the interval that the noise allows."""

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
# What the place in memory that an arm was built at may do, at 95%: of 33 pairs of arms whose ratio was known, the
# ratio was off by 0.9% (one sigma) beyond the noise of their rounds, and a process sees one such place.
EQUIVALENCE = 0.02
# Below five rounds nothing is cut, and below four the interval is too wide to say anything.
FEWEST_ROUNDS = 4
# Leaving out the rounds that took longer, by the product of both arms, raised what was found of a 5% slowdown on two
# recorded streams of identical calls from 85% to 91% and from 40% to 65%; a third lost 2%, and false alarms stayed.
BUSY = 1.4
MANY = 1000  # degrees of freedom, of which a t is a normal to three digits
# Normal consistency: the median absolute deviation of a normal sample is 0.6745 of its standard deviation.
MAD_TO_SIGMA = 1.4826
# Of warming up: the calls that at least are looked at, and by how much later ones may still be faster. Half of eight
# calls has a second best, so that neither one slow call nor one fast call decides.
FEWEST_WARM = 8
STEADY = 0.05


@dataclass(frozen=True)
class Ratio:
    """Time of an arm over the time of the arm that it is held against; below 1 is faster.

    `low` and `high` bound it at 95% as these two were built; built anew, their place in memory moves it by about 1%,
    which `verdict`, `p` and `smallest_resolvable` allow for. `smallest_resolvable` is the least true change, as a
    fraction, that a run with this noise and these rounds would have told from no change four times in five; `p` the
    two-sided probability of a ratio at least this far from 1 where there is no difference.
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
        """Half the interval's width, in log units: about the relative error of the ratio."""
        return math.log(self.high / self.low) / 2


class Estimate(NamedTuple):
    """The logarithm of a ratio, its standard error, and the degrees of freedom behind that."""

    centre: float
    error: float
    freedom: int


def log_ratio(arm: Sequence[float], against: Sequence[float]) -> Estimate:
    """The trimmed mean of the rounds' log-ratios, without the rounds in which the machine was plainly busy."""
    return Estimate(*trimmed_mean([math.log(a / b) for a, b in quiet_rounds(list(zip(arm, against, strict=True)))]))


def paired_ratio(arm: Sequence[float], against: Sequence[float]) -> Ratio:
    """Compare two arms round by round; `arm[i]` and `against[i]` are the seconds of one interleaved round.

    The 20%-trimmed mean of the log-ratios with Yuen's standard error: one slow burst of a shared machine cannot
    move it (Yuen 1974; Tukey and McLaughlin 1963 for one sample). Rounds in which the machine was plainly busy do not
    count, though `rounds` does. Raises ValueError below FEWEST_ROUNDS.
    """
    if len(arm) != len(against):
        raise ValueError(f"{len(arm)} rounds against {len(against)}: ratios are taken round by round")
    if len(arm) < FEWEST_ROUNDS:
        raise ValueError(f"{len(arm)} rounds; an interval needs at least {FEWEST_ROUNDS}")
    centre, error, freedom = estimate = log_ratio(arm, against)
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom)
    low, high = math.exp(centre - reach * error), math.exp(centre + reach * error)
    return Ratio(
        ratio=math.exp(centre),
        low=low,
        high=high,
        rounds=len(arm),
        verdict=judge(low, high),
        smallest_resolvable=math.expm1(_with_place(reach * error) + student_quantile(POWER, freedom) * error),
        p=by_chance(estimate),
    )


def quiet_rounds(pairs: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The rounds that took at most 1.4 times the product of the lower quartile's, and FEWEST_ROUNDS at least.

    Chosen by both arms together, never by one: with the turns in random order, what both took says nothing of which
    was the faster, so that leaving rounds out moves no ratio and only narrows the interval.
    """
    products = sorted(a * b for a, b in pairs)
    most = max(_busy_above(products), products[FEWEST_ROUNDS - 1])
    return [(a, b) for a, b in pairs if a * b <= most]


def busy_rounds(pairs: Sequence[tuple[float, float]]) -> int:
    """How many of the rounds the machine was plainly busy in, whether they count or not."""
    products = sorted(a * b for a, b in pairs)
    return sum(product > _busy_above(products) for product in products)


def _busy_above(products: Sequence[float]) -> float:
    return BUSY * products[len(products) // 4]


def judge(low: float, high: float) -> Verdict:
    """What an interval of the ratio says. SAME is a finding (all within 2% of 1), UNRESOLVED is the lack of one.

    FASTER and SLOWER are further from 1 than the interval and the place in memory, in quadrature, could account for.
    """
    if high <= 1 + EQUIVALENCE and low >= 1 / (1 + EQUIVALENCE):
        return "SAME"
    centre, reach = math.log(low * high) / 2, math.log(high / low) / 2
    if abs(centre) <= _with_place(reach):
        return "UNRESOLVED"
    return "FASTER" if centre < 0 else "SLOWER"


def _with_place(reach: float) -> float:
    return math.hypot(reach, math.log1p(EQUIVALENCE))


# One sigma of the logarithm of what the place in memory does to a ratio.
PLACE = math.log1p(EQUIVALENCE) / NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


class Scatter(NamedTuple):
    """What identical arms differ by beyond the noise of their rounds: one sigma of the log-ratio, and of how many
    pairs it was found; infinitely many where it is the known one of a quiet machine.
    """

    sigma: float
    pairs: float


QUIET = Scatter(PLACE, math.inf)


def by_chance(estimate: Estimate, scatter: Scatter = QUIET) -> float:
    """The probability of a ratio at least this far from 1 where there is no difference.

    Of the noise of the rounds and what identical arms scatter by besides, with Welch and Satterthwaite's degrees of
    freedom.
    """
    centre, error, freedom = estimate
    variance = error**2 + scatter.sigma**2
    uncertain = error**4 / freedom + scatter.sigma**4 / scatter.pairs
    known_to = min(MANY, variance**2 / uncertain) if uncertain else MANY
    return two_sided(centre, math.sqrt(variance), max(1, int(known_to)))


def scatter(twins: Sequence[Estimate]) -> Scatter:
    """What a run's identical arms differ by beyond the noise of their rounds.

    QUIET at least, which was measured on a quiet machine; on a busy one a build may lie worse by several percent for
    as long as it lives. The moment estimator of a random effect, precise pairs weighing more (DerSimonian and Laird
    1986), around a mean that is known to be 0.
    """
    weights = [1 / (error**2 + PLACE**2) for _, error, _ in twins]
    beyond = [centre**2 - error**2 for centre, error, _ in twins]
    found = math.fsum(w * b for w, b in zip(weights, beyond, strict=True)) / math.fsum(weights) if twins else 0.0
    return Scatter(math.sqrt(found), len(twins)) if found > PLACE**2 else QUIET


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


def two_sided(centre: float, error: float, freedom: int) -> float:
    """P(|t| >= |centre| / error) of a Student t with `freedom` degrees; what is below 1e-15 is rounding."""
    if error == 0:
        return 1.0 if centre == 0 else 0.0
    return max(0.0, 1 - _within(math.atan(abs(centre) / error / math.sqrt(freedom)), freedom))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for being that many, in the order given (Holm 1979).

    To call different what has an adjusted p of at most 0.05 is wrong, anywhere among them, in one family of twenty.
    """
    adjusted = [1.0] * len(p_values)
    highest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def share_interval(found: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share of which `found` were seen in so many trials (Wilson 1927)."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = (found + z**2 / 2) / (trials + z**2)
    reach = z / (trials + z**2) * math.sqrt(found * (trials - found) / trials + z**2 / 4)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def warmed_up(seconds: Sequence[float]) -> int | None:
    """How many calls went by before the times of a series settled; None if they have not, within those given.

    The first k calls were warming up if the rest, at least as many and at least FEWEST_WARM, is steady: the lower
    quartile of its first half is no more than 5% above that of its second, and call k itself no more than 5% above
    it either. Times that rise are settled: that is a machine that got busier, which no warming up cures.
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
