"""The evidence of a run: its rate of false alarms on identical arms, and its ratios judged together."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.show import label, ratio_of
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.statistics import (
    QUIET,
    Estimate,
    Scatter,
    describe_ratio,
    holm,
    log_ratio,
    p_value,
    paired_ratio,
    scatter,
)
from harness.core.record_files import Row

# If more than this share of the identical arms is called different, the run's other verdicts are not evidence.
MOST_FALSE_ALARMS = 0.10
SIGNIFICANCE = 0.05
_KEYS = ("comparison", "metric", "point")


@dataclass(frozen=True)
class Twins:
    """A pair of identical arms: the comparison's row, the row of their ratio, and its estimate."""

    row: Row
    ratio: Row
    estimate: Estimate


@dataclass(frozen=True)
class Evidence:
    """What all comparisons of a run say together, from their rows in the record.

    A difference counts only if it exceeds the spread between identical arms in the same run.
    """

    rows: Collection[Row]

    def footer(self) -> Row:
        """Return the entries of the record's footer."""
        return {
            "false_alarms": self.false_alarms(),
            "adjusted": self.adjusted(),
            "beside_peers": self.beside_peers(),
        }

    def false_alarms(self) -> Row:
        """Return how many pairs of identical arms the run calls different, and whether it is evidence.

        A pair is called different if it exceeds the spread between the other pairs, as for every verdict.
        `by_their_rounds` counts the pairs that the noise of their own rounds does not explain.
        """
        found = self._twins
        by_their_rounds = sum(twins.ratio["verdict"] in ("FASTER", "SLOWER") for twins in found)
        flagged = sum(self._twins_p_value(twins) <= SIGNIFICANCE for twins in found)
        share = flagged / len(found) if found else None
        return {
            "pairs": len(found),
            "flagged": flagged,
            "share": share,
            "evidence": share is not None and share <= MOST_FALSE_ALARMS,
            "by_their_rounds": by_their_rounds,
            "scatter": None if self._scatter == QUIET else self._scatter.sigma,
        }

    def adjusted(self) -> list[Row]:
        """Return the p-value of every ratio, by the spread between identical arms, and Holm's adjustment over all.

        The identical arms are included, each by the spread between the others.
        """
        found = list(self._ratios(twins=False))
        alone = [p_value(_estimate(row, ratio), self._scatter) for row, ratio in found]
        judged = [(row, ratio, p, value) for (row, ratio), p, value in zip(found, alone, holm(alone), strict=True)]
        for twins in self._twins:
            p = self._twins_p_value(twins)
            judged.append((twins.row, twins.ratio, p, p))
        return [
            {**{key: row[key] for key in _KEYS}, "arm": ratio["arm"], "p": p, "adjusted": value}
            for row, ratio, p, value in judged
        ]

    def beside_peers(self) -> list[Row]:
        """Return the subject's time over that of each peer that did the same work, adjusted (Holm) for all of these."""
        found = [(row, subject, peer) for row in self.rows for subject, peer in _beside_peers(row)]
        estimates = [log_ratio(subject["seconds"], peer["seconds"]) for _, subject, peer in found]
        p_values = [p_value(estimate, self._scatter) for estimate in estimates]
        return [
            {
                **{key: row[key] for key in _KEYS},
                "arm": subject["arm"],
                "peer": peer["arm"],
                **dataclasses.asdict(paired_ratio(subject["seconds"], peer["seconds"], effect=row["effect"])),
                "p": p,
                "adjusted": value,
            }
            for (row, subject, peer), p, value in zip(found, p_values, holm(p_values), strict=True)
        ]

    def summary(self) -> Iterator[tuple[str, bool]]:
        """Yield the lines about identical arms and joint significance, each with True if it is bad news."""
        alarms = self.false_alarms()
        yield (
            f"{alarms['pairs']} pairs of identical arms, {alarms['flagged']} called different",
            bool(alarms["flagged"]),
        )
        for twins in self._twins:
            if twins.ratio["verdict"] in ("FASTER", "SLOWER"):
                yield f"  {label(twins.row)}: {describe_ratio(ratio_of(twins.ratio))}, by its own rounds", True
        if alarms["scatter"]:
            yield (
                f"identical arms differ by {alarms['scatter']:.1%} (one sigma) beyond the noise of their rounds: "
                "memory or processors are busy; the report allows for it",
                False,
            )
        if not alarms["pairs"]:
            yield "without a pair of identical arms, the rate of false alarms of this run is not known", False
        elif not alarms["evidence"]:
            yield f"more than {MOST_FALSE_ALARMS:.0%} of identical arms called different: not evidence", True
        if lost := self._lost_differences():
            yield f"{lost} differences are not significant when all ratios of the run are judged together", False

    def _lost_differences(self) -> int:
        """Return how many differences are significant by their own rounds, but not after the adjustment."""
        significant = {_key(row) for row in self.adjusted() if row["adjusted"] <= SIGNIFICANCE}
        resolved = [
            {**row, "arm": ratio["arm"]}
            for row, ratio in self._ratios(twins=False)
            if ratio["verdict"] in ("FASTER", "SLOWER")
        ]
        return sum(_key(row) not in significant for row in resolved)

    @functools.cached_property
    def _twins(self) -> list[Twins]:
        return [Twins(row, ratio, _estimate(row, ratio)) for row, ratio in self._ratios(twins=True)]

    @functools.cached_property
    def _scatter(self) -> Scatter:
        return scatter([twins.estimate for twins in self._twins])

    def _twins_p_value(self, twins: Twins) -> float:
        """Return the p-value of two identical arms, by the spread between the other pairs."""
        others = [other.estimate for other in self._twins if other is not twins]
        return p_value(twins.estimate, scatter(others))

    def _ratios(self, *, twins: bool) -> Iterator[tuple[Row, Row]]:
        """Yield the ratios of identical arms, or all others, each with the row of its comparison."""
        for row in self.rows:
            for ratio in row["ratios"]:
                if ratio["arm"].endswith(TWIN_SUFFIX) == twins:
                    yield row, ratio


def _beside_peers(row: Row) -> Iterator[tuple[Row, Row]]:
    """Yield pairs of the subject's arm and a peer: the arm that the peer names, or else the control, or else each."""
    timed = [arm for arm in row["arms"] if arm["seconds"] and not arm["twin_of"]]
    own = [arm for arm in timed if not arm.get("peer")]
    control = [arm for arm in own if arm["arm"] == row["control"]]
    for peer in timed:
        if peer.get("peer"):
            named = peer.get("beside")
            chosen = [arm for arm in own if arm["arm"] == named] if named else control or own
            yield from ((subject, peer) for subject in chosen)


def _estimate(row: Row, ratio: Row) -> Estimate:
    seconds = {arm["arm"]: arm["seconds"] for arm in row["arms"]}
    return log_ratio(seconds[ratio["arm"]], seconds[ratio["against"]])


def _key(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row[key] for key in (*_KEYS, "arm"))
