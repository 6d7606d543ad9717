"""One run of the comparisons: what is selected, what time it gets, and each comparison measured and recorded once."""

from __future__ import annotations

import dataclasses
import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.show import label, ratio_of, show
from harness.bench.arms import ArmCeilings, DeclaredComparison, ModelPool, derived, holding
from harness.bench.comparison import AGAIN, Budget, Witnessed, Work, measure
from harness.bench.statistics import (
    QUIET,
    Estimate,
    Scatter,
    by_chance,
    describe_ratio,
    holm,
    log_ratio,
    paired_ratio,
    scatter,
)
from harness.bench.timing import by_events
from harness.bench.witness import refusal, witness
from harness.core.environment import environment
from harness.core.sizes import SIZES
from harness.history.resume import covers, fingerprint, resumable
from harness.pytest_plugin.hooks import deviations_of, recorder_of, subject_of

# Of timing alone: building, verifying and watching come on top, about as much again.
FULL_SECONDS, QUICK_SECONDS = 240.0, 30.0
# Above this share of identical arms told apart, the run's other verdicts are no evidence.
EVIDENCE = 0.10
SIGNIFICANCE = 0.05

Row = dict[str, Any]
Key = tuple[str, int | None]


@dataclass
class ComparisonRunner:
    """What the tests of one run share. `rows` are the comparisons' records, by label and point."""

    config: pytest.Config
    declared: Mapping[str, DeclaredComparison]
    selected: dict[Key, list[str]] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)
    held: list[Row] = field(default_factory=list)
    _standing: dict[str, tuple[ModelPool, ArmCeilings]] = field(default_factory=dict)

    def select(self, items: list[pytest.Item]) -> None:
        """Note the arms that are left after -k and the like: those will be measured, with their controls."""
        for item in items:
            if isinstance(item, pytest.Function) and "comparison" in item.fixturenames:
                asked = item.callspec.params
                self.selected.setdefault((str(asked["comparison"]), asked["point"]), []).append(str(asked["arm"]))  # type: ignore[arg-type]
        # Every run needs an A/A ratio: what it makes of two identical arms is what its other ratios are worth.
        if self.selected and not any(arm.endswith(AGAIN) for arms in self.selected.values() for arm in arms):
            key = next((key for key in self.selected if self.declared[key[0]].twin), next(iter(self.selected)))
            self.selected[key].append(self.declared[key[0]].control + AGAIN)

    def measure(self, comparison: str, point: int | None) -> Row:
        """The comparison's record: measured, written and shown when the first of its arms asks for it."""
        key = comparison, point
        if key not in self.rows:
            declared, started = self.declared[comparison], time.perf_counter()
            row = self._left_behind(declared, point)
            if row is None:
                row = self._measured(declared, point)
                row |= {**self._circumstances(), "wall_seconds": time.perf_counter() - started}
            recorder_of(self.config).write(row)
            self.rows[key] = row
            show(self.config, row)
            self._hold(declared)
        return self.rows[key]

    def _left_behind(self, declared: DeclaredComparison, point: int | None) -> Row | None:
        """The comparison's record from a run that was interrupted, if it has every arm that this run is asked for."""
        key = declared.suite, declared.name, point
        row = next((row for row in self._resumed if (row["comparison"], row["metric"], row["point"]) == key), None)
        if row is None or not covers(row, self.selected[declared.label, point]):
            return None
        self._budget.allot(declared.weight)  # its share of the time goes to what is still to be measured
        return row

    @functools.cached_property
    def _resumed(self) -> list[Row]:
        if self.config.getoption("--fresh"):
            return []
        return resumable(recorder_of(self.config).recorder.path.parent, self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> str:
        options = ("--size", "--device", "--quick", "--nanogpt")
        settings = {option: self.config.getoption(option) for option in options}
        settings["threads"] = torch.get_num_threads()
        return fingerprint(
            subject_of(self.config).name, environment=environment(self.config.rootpath), settings=settings
        )

    def _measured(self, declared: DeclaredComparison, point: int | None) -> Row:
        device, (pool, ceilings) = self.config.getoption("--device"), self._stands(declared.suite)
        chosen, before = self.selected[declared.label, point], _globals()
        comparison = declared.at(pool, point, twin=any(arm.endswith(AGAIN) for arm in chosen))
        measured = measure(
            comparison,
            only=set(chosen),
            seconds=self._budget.allot(declared.weight),
            clock=_clock(device),
            busy=time.process_time if device == "cpu" else None,
            timed=by_events(device) if torch.device(device).type == "cuda" else None,
            watch=lambda work: _watch(work, device),
            ceilings=ceilings,
        )
        self._budget.spend(measured.timing_seconds)
        measured.notes += _put_back(before)
        row = measured.row()
        derived(row)
        return row

    def _stands(self, suite: str) -> tuple[ModelPool, ArmCeilings]:
        """The models of one suite and its yardsticks: those of the one before are let go."""
        if suite not in self._standing:
            self.close()
            subject, device = subject_of(self.config), self.config.getoption("--device")
            size = SIZES[self.config.getoption("--size")]
            pool = ModelPool(
                subject,
                size,
                device,
                places={"nanogpt": self.config.getoption("--nanogpt")},
                deviations=deviations_of(self.config, subject.name),
            )
            self._standing[suite] = pool, ArmCeilings(device, size)
        return self._standing[suite]

    def close(self) -> None:
        """Let every model go."""
        for pool, _ in self._standing.values():
            pool.close()
        self._standing.clear()

    def _hold(self, declared: DeclaredComparison) -> None:
        """What the comparison's figures are held to, once all of its points are there."""
        wanted = [key for key in self.selected if key[0] == declared.label]
        if declared.holds and all(key in self.rows for key in wanted):
            for held in holding(declared, [self.rows[key] for key in wanted]):
                recorder_of(self.config).write(held)
                self.held.append(held)

    def finish(self) -> None:
        """What only all comparisons together say: false alarms, and Holm's adjustment. Lets the models go."""
        self.close()
        if self.rows:
            found = {
                "false_alarms": self.false_alarms(),
                "adjusted": self.adjusted(),
                "beside_peers": self.beside_peers(),
            }
            recorder_of(self.config).footer.update(found)

    def _ratios(self, *, twins: bool) -> Iterator[tuple[Row, Row]]:
        for row in self.rows.values():
            for ratio in row["ratios"]:
                if ratio["arm"].endswith(AGAIN) == twins:
                    yield row, ratio

    def false_alarms(self) -> Row:
        """How many pairs of identical arms this run tells apart, and whether that leaves it evidence.

        A pair is told apart by more than the others scatter by: what all verdicts are held to in the end.
        `by_their_rounds` are those that the noise of their own rounds did not account for.
        """
        found = self._twins
        by_their_rounds = sum(ratio["verdict"] in ("FASTER", "SLOWER") for _, ratio, _ in found)
        flagged = sum(self._told_apart(twin) <= SIGNIFICANCE for twin in found)
        share = flagged / len(found) if found else None
        return {
            "pairs": len(found),
            "flagged": flagged,
            "share": share,
            "evidence": share is not None and share <= EVIDENCE,
            "by_their_rounds": by_their_rounds,
            "scatter": None if self._scatter == QUIET else self._scatter.sigma,
        }

    @property
    def _twins(self) -> list[tuple[Row, Row, Estimate]]:
        return [(row, ratio, _estimate(row, ratio)) for row, ratio in self._ratios(twins=True)]

    @property
    def _scatter(self) -> Scatter:
        return scatter([estimate for _, _, estimate in self._twins])

    def _told_apart(self, twin: tuple[Row, Row, Estimate]) -> float:
        """The p of two identical arms, by what the other pairs scatter by."""
        others = [estimate for _, ratio, estimate in self._twins if ratio is not twin[1]]
        return by_chance(twin[2], scatter(others))

    def adjusted(self) -> list[Row]:
        """Every ratio's p-value, by what this run's identical arms scatter by, and after Holm's adjustment for all.

        The twins' own are among them, each by what the others scatter by.
        """
        found, twins = list(self._ratios(twins=False)), self._twins
        alone = [by_chance(_estimate(row, ratio), self._scatter) for row, ratio in found]
        judged = [(row, ratio, p, value) for (row, ratio), p, value in zip(found, alone, holm(alone), strict=True)]
        judged += [(row, ratio, p, p) for row, ratio, p in ((*twin[:2], self._told_apart(twin)) for twin in twins)]
        keys = ("comparison", "metric", "point")
        return [
            {**{key: row[key] for key in keys}, "arm": ratio["arm"], "p": p, "adjusted": value}
            for row, ratio, p, value in judged
        ]

    def beside_peers(self) -> list[Row]:
        """The subject's time over that of each peer that did the same work, adjusted (Holm) for all of these."""
        found = []
        for row in self.rows.values():
            timed = [arm for arm in row["arms"] if arm["seconds"] and not arm["twin_of"]]
            own = [arm for arm in timed if not arm.get("peer")]
            subject = min(own, key=lambda arm: (arm["arm"] != row["control"], arm["median_seconds"]), default=None)
            for peer in timed:
                if subject is not None and peer.get("peer"):
                    found.append((row, subject, peer))
        estimates = [log_ratio(subject["seconds"], peer["seconds"]) for _, subject, peer in found]
        p = [by_chance(estimate, self._scatter) for estimate in estimates]
        return [
            {
                **{key: row[key] for key in ("comparison", "metric", "point")},
                "arm": subject["arm"],
                "peer": peer["arm"],
                **dataclasses.asdict(paired_ratio(subject["seconds"], peer["seconds"])),
                "p": alone,
                "adjusted": value,
            }
            for (row, subject, peer), alone, value in zip(found, p, holm(p), strict=True)
        ]

    def summary(self) -> Iterator[tuple[str, bool]]:
        """The run's last lines, each with whether it is bad news; those that begin with '# ' are headings."""
        alarms = self.false_alarms()
        yield "# identical arms (A/A)", False
        told = f"{alarms['pairs']} pairs of identical arms, {alarms['flagged']} called different"
        yield told, bool(alarms["flagged"])
        for row, ratio, _ in self._twins:
            if ratio["verdict"] in ("FASTER", "SLOWER"):
                yield f"  {label(row)}: {describe_ratio(ratio_of(ratio))}, by its own rounds", True
        if alarms["scatter"]:
            told = f"beyond the noise of their rounds they scatter by {alarms['scatter']:.1%} (one sigma)"
            yield f"{told}: busy memory or processors; the report allows for it", False
        if not alarms["pairs"]:
            yield "without one, nothing says how often this run's verdicts are wrong", False
        elif not alarms["evidence"]:
            yield f"more than {EVIDENCE:.0%} of identical arms told apart: this run is not evidence", True
        kept = {_key(row) for row in self.adjusted() if row["adjusted"] <= SIGNIFICANCE}
        resolved = [
            {**row, "arm": ratio["arm"]}
            for row, ratio in self._ratios(twins=False)
            if ratio["verdict"] in ("FASTER", "SLOWER")
        ]
        if lost := sum(_key(row) not in kept for row in resolved):
            yield f"{lost} differences do not stand when all ratios of the run are judged together", False
        if self.held:
            yield "# held against closed forms", False
        for held in self.held:
            told = f"{held['comparison']} {held['metric']}, {held['arm']}: {held['told']}; {held['expected']}"
            yield f"{told}: {held['verdict']}", held["verdict"] == "fail"

    @functools.cached_property
    def _budget(self) -> Budget:
        return Budget(seconds(self.config), [self.declared[key[0]].weight for key in self.selected])

    def _circumstances(self) -> Row:
        return {
            "subject": subject_of(self.config).name,
            "size": self.config.getoption("--size"),
            "device": self.config.getoption("--device"),
            "threads": torch.get_num_threads(),
            "quick": self.config.getoption("--quick"),
            "load": load(),
            "fingerprint": self._fingerprint,
        }


def _estimate(row: Row, ratio: Row) -> Estimate:
    seconds = {arm["arm"]: arm["seconds"] for arm in row["arms"]}
    return log_ratio(seconds[ratio["arm"]], seconds[ratio["against"]])


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[key] for key in ("comparison", "metric", "point", "arm"))


def _globals() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "default dtype": torch.get_default_dtype()}


def _put_back(before: Row) -> list[str]:
    """What an arm has changed for all others, told, and as it was again."""
    now = _globals()
    changed = [f"{name} from {before[name]} to {now[name]}" for name in before if before[name] != now[name]]
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["default dtype"])
    return [f"an arm changed torch's {each}, so the times are of no one setting" for each in changed]


def seconds(config: pytest.Config) -> float:
    """The time for all comparisons together."""
    default = QUICK_SECONDS if config.getoption("--quick") else FULL_SECONDS
    return float(config.getoption("--budget") or default)


def load() -> float | None:
    """How many processes wanted a core in the last minute, or None where the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _clock(device: str) -> Callable[[], float]:
    """A clock that waits for the device: CUDA's kernels are still running when the call has returned."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _watch(work: Work, device: str) -> Witnessed:
    """One call under the profiler: its memory, and what ran. Of a shorter call the memory is not the work's."""
    found = witness(work.seen or work.call, device=device)
    return Witnessed(
        ledgers=found.ledgers if work.weigh and not work.seen else {},
        witness={**found.as_row(), **({"products_seconds": None} if work.seen else {})},
        refuse=lambda claims: refusal(found, claims=claims, flops=None if work.seen else work.flops),
        seconds=0.0 if work.seen else found.seconds,
    )
