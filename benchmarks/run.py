"""One run of the comparisons: selects them, shares the time, and measures and records each of them once."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.budget import Budget, total_seconds
from benchmarks.evidence import Evidence
from benchmarks.show import show
from benchmarks.undecided import command, undecided_lines
from harness.bench.arms import (
    ArmCeilings,
    DeclaredComparison,
    ModelPool,
    add_derived_metrics,
    check_expectations,
)
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.measurement import measure
from harness.bench.timing import timer_by_cuda_events
from harness.bench.usage import usage_now
from harness.bench.witness import violated_claim, witness
from harness.bench.work import WitnessedCall, Work
from harness.core.environment import environment
from harness.core.process_exit import subject_at_work
from harness.core.record_files import Row
from harness.core.sizes import SIZES
from harness.history.resume import covers, fingerprint, resumable
from harness.pytest_plugin.options import deviations_of, reports_folder
from harness.pytest_plugin.runners import subject_of
from harness.pytest_plugin.session import add_to_benchmark_footer, write_benchmark

Key = tuple[str, int | None]  # the label of a comparison, and its point


@dataclass
class ComparisonRunner:
    """Measures the comparisons of one run; all of its tests share it.

    selected: the arms to measure, by label and point.
    rows: the comparisons' rows in the record, by label and point.
    expectations: the rows of the expectations that were checked.
    """

    config: pytest.Config
    declared: Mapping[str, DeclaredComparison]
    selected: dict[Key, list[str]] = field(default_factory=dict)
    rows: dict[Key, Row] = field(default_factory=dict)
    expectations: list[Row] = field(default_factory=list)
    _resources: dict[str, tuple[ModelPool, ArmCeilings]] = field(default_factory=dict)

    def select(self, items: list[pytest.Item]) -> None:
        """Record the arms that are left after -k and the like. They are measured with their controls."""
        for item in items:
            if isinstance(item, pytest.Function) and "comparison" in item.fixturenames:
                params = item.callspec.params
                key = str(params["comparison"]), params["point"]
                self.selected.setdefault(key, []).append(str(params["arm"]))  # type: ignore[arg-type]
        # Every run needs a ratio of identical arms: it shows how far the other ratios can be trusted.
        if self.selected and not any(arm.endswith(TWIN_SUFFIX) for arms in self.selected.values() for arm in arms):
            key = next((key for key in self.selected if self.declared[key[0]].twin), next(iter(self.selected)))
            self.selected[key].append(self.declared[key[0]].control + TWIN_SUFFIX)

    def measure(self, comparison: str, point: int | None) -> Row:
        """Return the comparison's row. The first call for a comparison measures, records and shows it."""
        key = comparison, point
        if key not in self.rows:
            declared, started = self.declared[comparison], time.perf_counter()
            row = self._row_of_interrupted_run(declared, point)
            if row is None:
                row = self._measure(declared, point)
                pool, _ = self._resources_of(declared.suite)
                conditions = {**self._conditions(), "parameters": pool.parameters()}
                row |= {**conditions, "wall_seconds": time.perf_counter() - started}
            write_benchmark(self.config, row)
            self.rows[key] = row
            show(self.config, row)
            self._check_expectations(declared)
        return self.rows[key]

    def finish(self) -> None:
        """Write what all comparisons say together to the footer of the record, and release the models."""
        self.close()
        if self.rows:
            add_to_benchmark_footer(self.config, self.evidence.footer())

    def close(self) -> None:
        """Release every model."""
        for pool, _ in self._resources.values():
            pool.close()
        self._resources.clear()

    @property
    def evidence(self) -> Evidence:
        """The evidence of the comparisons that have been measured."""
        return Evidence(list(self.rows.values()))

    def summary(self) -> Iterator[tuple[str, bool]]:
        """Yield the run's last lines, each with True if it is bad news. Lines that begin with '# ' are headings."""
        yield "# identical arms (A/A)", False
        yield from self.evidence.summary()
        if undecided := list(undecided_lines(list(self.rows.values()), command(self.config))):
            yield "# undecided", False
            yield from ((line, False) for line in undecided)
        if self.expectations:
            yield "# compared with closed forms", False
        for row in self.expectations:
            text = f"{row['comparison']} {row['metric']}, {row['arm']}: {row['told']}; expected {row['expected']}"
            verdict = "inconclusive" if row["verdict"] == "unresolved" else row["verdict"]
            yield f"{text}: {verdict}", row["verdict"] == "fail"

    def _row_of_interrupted_run(self, declared: DeclaredComparison, point: int | None) -> Row | None:
        """Return the comparison's row from an interrupted run, if it has every arm that this run has selected."""
        key = declared.suite, declared.name, point
        row = next((row for row in self._resumable if (row["comparison"], row["metric"], row["point"]) == key), None)
        if row is None or not covers(row, self.selected[declared.label, point]):
            return None
        self._budget.allot(declared.weight)  # its share of the time goes to the comparisons that are left
        return row

    @functools.cached_property
    def _resumable(self) -> list[Row]:
        if self.config.getoption("--fresh"):
            return []
        return resumable(reports_folder(self.config) / "records", self._fingerprint)

    @functools.cached_property
    def _fingerprint(self) -> str:
        options = ("--size", "--device", "--quick", "--nanogpt", "--resolve")
        settings = {option: self.config.getoption(option) for option in options}
        settings["threads"] = torch.get_num_threads()
        return fingerprint(
            subject_of(self.config).name, environment=environment(self.config.rootpath), settings=settings
        )

    def _measure(self, declared: DeclaredComparison, point: int | None) -> Row:
        device, (pool, ceilings) = self.config.getoption("--device"), self._resources_of(declared.suite)
        allotted, effect = self._budget.allot(declared.weight), self.config.getoption("--resolve")
        arms, settings = self.selected[declared.label, point], _global_settings()
        comparison = declared.at(pool, point, twin=any(arm.endswith(TWIN_SUFFIX) for arm in arms))
        with subject_at_work():
            result = measure(
                comparison,
                only=set(arms),
                seconds=allotted.seconds,
                most_seconds=allotted.most,
                effect=effect,
                clock=_clock(device),
                count=usage_now if device == "cpu" else None,
                timer=timer_by_cuda_events(device) if torch.device(device).type == "cuda" else None,
                witness=lambda work: _witness(work, device),
                ceilings=ceilings,
            )
        self._budget.spend(result.timing_seconds)
        result.notes += _restore_global_settings(settings)
        row = result.row()
        add_derived_metrics(row)
        return row

    def _resources_of(self, suite: str) -> tuple[ModelPool, ArmCeilings]:
        """Return the models and the ceilings of one suite. Those of the previous suite are released."""
        if suite not in self._resources:
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
            self._resources[suite] = pool, ArmCeilings(device, size)
        return self._resources[suite]

    def _check_expectations(self, declared: DeclaredComparison) -> None:
        """Check and record the expectations of a comparison once all of its points are measured."""
        points = [key for key in self.selected if key[0] == declared.label]
        if declared.expect and all(key in self.rows for key in points):
            for row in check_expectations(declared, [self.rows[key] for key in points]):
                write_benchmark(self.config, row)
                self.expectations.append(row)

    @functools.cached_property
    def _budget(self) -> Budget:
        return Budget(
            total_seconds(self.config),
            [self.declared[key[0]].weight for key in self.selected],
            resolve=self.config.getoption("--resolve") is not None,
            given=self.config.getoption("--budget") is not None,
        )

    def _conditions(self) -> Row:
        return {
            "subject": subject_of(self.config).name,
            "size": self.config.getoption("--size"),
            "device": self.config.getoption("--device"),
            "threads": torch.get_num_threads(),
            "quick": self.config.getoption("--quick"),
            "load": load_average(),
            "fingerprint": self._fingerprint,
        }


def load_average() -> float | None:
    """Return how many processes wanted a core in the last minute, or None if the system does not say."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def _global_settings() -> dict[str, Any]:
    return {"threads": torch.get_num_threads(), "default dtype": torch.get_default_dtype()}


def _restore_global_settings(before: Mapping[str, Any]) -> list[str]:
    """Restore torch's global settings, and return a note about each that an arm changed for all others."""
    now = _global_settings()
    changed = [f"{name} from {before[name]} to {now[name]}" for name in before if before[name] != now[name]]
    torch.set_num_threads(before["threads"])
    torch.set_default_dtype(before["default dtype"])
    return [f"an arm changed torch's {each}: the times do not all have the same setting" for each in changed]


def _clock(device: str) -> Callable[[], float]:
    """Return a clock that waits for the device: on CUDA, kernels still run when a call has returned."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _witness(work: Work, device: str) -> WitnessedCall:
    """Profile one call: its memory, and what ran. The memory of a shorter call is not that of the work."""
    short = work.witness_call is not None
    found = witness(work.witness_call or work.call, device=device)
    return WitnessedCall(
        ledgers=found.ledgers if work.measures_memory and not short else {},
        witness={**found.as_row(), **({"products_seconds": None} if short else {})},
        violated_claim=lambda claims: violated_claim(found, claims=claims, flops=None if short else work.flops),
        seconds=0.0 if short else found.seconds,
    )
