"""The result of a comparison: verifications, times, ratios and memory of its arms, and their row in the record."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from harness.bench.comparison import Comparison
from harness.bench.statistics import EQUIVALENCE, Ratio, median, spread
from harness.bench.work import Sample, Verification
from harness.core.record_files import Row


@dataclass
class ComparisonResult:
    """What was measured of each arm, by its name. An arm is in `seconds` only if its verification passed.

    seconds: block minima of the arm's call, one for each round.
    ledgers: the peak memory in bytes by ledger, the exact ledger first.
    figures: further entries of the arm's row in the record, under the names that they have there.
    ceilings: the ceilings that were measured in the same rounds, by name.
    effect: the difference that the comparison was to decide about, as a fraction.
    stopped: why the rounds ended: "interval", "budget", "rounds" or "nothing to measure".
    witnessed_seconds: the duration of a call under the profiler.
    samples: what was kept of the last timed call.
    again: what the verification after timing said.
    spent: the seconds of each part of the measurement, by its name.
    """

    comparison: Comparison
    verifications: dict[str, Verification]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    ledgers: dict[str, dict[str, int]] = field(default_factory=dict)
    figures: dict[str, Row] = field(default_factory=dict)
    ceilings: dict[str, Row] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calls_per_block: int = 0
    timing_seconds: float = 0.0
    effect: float = EQUIVALENCE
    stopped: str = "nothing to measure"
    witnessed_seconds: dict[str, float] = field(default_factory=dict)
    samples: dict[str, Sample] = field(default_factory=dict)
    again: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def spending(self, part: str) -> Iterator[None]:
        """Add the duration of the block to what that part of the measurement has taken."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.spent[part] = self.spent.get(part, 0.0) + time.perf_counter() - started

    def reject(self, name: str, verification: Verification) -> None:
        """Replace an arm's verification, and remove its times and every ratio that they are part of."""
        self.verifications[name] = verification
        for figures in (self.seconds, self.tokens):
            figures.pop(name, None)
        baseline = self.comparison.baseline
        self.ratios = {arm: ratio for arm, ratio in self.ratios.items() if name not in (arm, baseline(arm))}

    def paired_rounds(self) -> Iterator[list[tuple[float, float]]]:
        """Yield, for each arm that is compared with another, the seconds of both in every round."""
        for name, times in self.seconds.items():
            baseline = self.comparison.baseline(name)
            if baseline != name and baseline in self.seconds:
                yield list(zip(times, self.seconds[baseline], strict=True))

    def row(self) -> Row:
        """Return the comparison as one row of the record. Seconds are block minima."""
        comparison = self.comparison
        return {
            "kind": "comparison",
            "comparison": comparison.name,
            "title": comparison.title,
            "axis": comparison.axis,
            "point": comparison.point,
            "metric": comparison.metric,
            "why": comparison.why,
            "control": comparison.control,
            "calls_per_block": self.calls_per_block,
            "effect": self.effect,
            "stopped": self.stopped,
            "timing_seconds": self.timing_seconds,
            "spent": self.spent,
            "notes": self.notes,
            "arms": [self._arm_row(name) for name in self.verifications],
            "ceilings": [{"name": name, **ceiling} for name, ceiling in self.ceilings.items()],
            "ratios": [self._ratio_row(name, ratio) for name, ratio in self.ratios.items()],
        }

    def _arm_row(self, name: str) -> Row:
        verification, seconds, ledgers = self.verifications[name], self.seconds.get(name), self.ledgers.get(name, {})
        arm = self.comparison.arm(name)
        return {
            "arm": name,
            "description": arm.description,
            "twin_of": arm.twin_of,
            "peer": arm.peer,
            "beside": arm.beside,
            "verified": {"verdict": verification.verdict, "message": verification.message},
            "verified_again": self.again.get(name),
            "error": verification.error,
            "allowed": verification.allowed,
            "seconds": seconds,
            "median_seconds": median(seconds) if seconds else None,
            "spread_seconds": spread(seconds) if seconds else None,
            "tokens_per_call": self.tokens.get(name),
            "tokens_per_second": self.tokens[name] / median(seconds) if seconds else None,
            "positions": verification.witness.get("positions"),
            "positions_closed_form": verification.witness.get("positions_closed_form"),
            "peak_memory_bytes": next(iter(ledgers.values()), None),
            "peak_memory_ledger": next(iter(ledgers), None),
            "ledgers": ledgers,
            **self.figures.get(name, {}),
        }

    def _ratio_row(self, name: str, ratio: Ratio) -> Row:
        return {"arm": name, "against": self.comparison.baseline(name), **dataclasses.asdict(ratio)}
