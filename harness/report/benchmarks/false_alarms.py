"""The false alarms of a benchmark run: how many pairs of identical arms it called different."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms
from harness.report.formatting import plural
from harness.report.json_values import as_float, as_mapping
from harness.report.run_records import RunRecords

MOST_PAIRS = 10**6  # a run that counts more is damaged
TOLERATED = 0.10  # a run that calls a larger share of its identical arms different is no evidence


@dataclass(frozen=True)
class FalseAlarms:
    """The number of pairs of identical arms that a run timed, and how many of them it called different.

    `by_their_rounds` is how many differ before the spread between identical arms, `scatter`, is allowed for.
    """

    pairs: int
    flagged: int
    evidence: bool
    by_their_rounds: int | None = None
    scatter: float | None = None

    @classmethod
    def of(cls, run: RunRecords) -> FalseAlarms:
        """Return the counts of the footer; of the twins' ratios in a run without them (older, or died)."""
        counted = as_mapping((run.footer or {}).get("false_alarms"))
        pairs, flagged = counted.get("pairs"), counted.get("flagged")
        if not isinstance(pairs, int) or not isinstance(flagged, int) or not 0 <= flagged <= pairs <= MOST_PAIRS:
            rows = [row for comparison in run.comparisons for row in arms(comparison)]
            twins = [row for row in rows if row["twin_of"] and as_float(row["ratio"])]
            pairs, flagged = len(twins), sum(formatting.is_conclusive(row) for row in twins)
        evidence = counted.get("evidence") is not False and flagged <= TOLERATED * pairs
        first, scatter = counted.get("by_their_rounds"), as_float(counted.get("scatter"))
        return cls(pairs, flagged, evidence, first if isinstance(first, int) else None, scatter)

    @property
    def text(self) -> str:
        """`Identical arms: 12 pairs, 0 called different (0%, at most 22% with 95% confidence)`."""
        if not self.pairs:
            return "Identical arms: none were timed against each other, so this run's false alarms are not known"
        most = upper_bound(self.flagged, self.pairs)
        text = (
            f"Identical arms: {plural(self.pairs, 'pair')}, {self.flagged} called different "
            f"({self.flagged / self.pairs:.0%}, at most {most:.0%} with 95% confidence)"
        )
        if self.by_their_rounds is None or self.scatter is None:
            return text
        return (
            f"{text}; {self.by_their_rounds} by the noise of their rounds alone. They scatter by {self.scatter:.1%} "
            "(one sigma) beyond that noise, and a difference below counts only if it exceeds this scatter as well"
        )


def upper_bound(flagged: int, pairs: int) -> float:
    """Return the one-sided 95% bound on a share of which `flagged` of `pairs` were seen.

    Source: Clopper & Pearson, "The use of confidence or fiducial limits" (1934).
    """
    low, high = flagged / pairs, 1.0
    for _ in range(50):  # bisection to 2^-50
        share = (low + high) / 2
        probability = math.fsum(math.comb(pairs, k) * share**k * (1 - share) ** (pairs - k) for k in range(flagged + 1))
        low, high = (share, high) if probability > 0.05 else (low, share)
    return high


def warning(run: RunRecords) -> Iterator[str]:
    """Yield the warning above a run that calls too many identical arms different, or timed none."""
    alarms = FalseAlarms.of(run)
    if not alarms.evidence:
        text = "no identical arms were timed against each other, so nothing says how often its verdicts are wrong"
        if alarms.pairs:
            seen = f"{alarms.flagged} of {plural(alarms.pairs, 'pair')} of identical arms were called different"
            text = f"{seen}. Above {TOLERATED:.0%} no verdict of this benchmark run counts"
        yield from (f"**NOT EVIDENCE: {text}.**", "")
