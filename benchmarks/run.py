"""One run of the comparisons: what is selected, what time it gets, and each comparison measured and recorded once."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.show import show
from harness.compare import AGAIN, Budget, Comparison, Finding, Measured, Work, measure
from harness.memory import peak_bytes
from harness.plugin import recorder_of, subject_of
from harness.statistics import Ratio

FULL_SECONDS, QUICK_SECONDS = 360.0, 70.0


@dataclass(frozen=True)
class Key:
    """One comparison: the test function that declares it, and the point."""

    function: str
    point: int | None

    @classmethod
    def of(cls, item: pytest.Function) -> Key:
        """The comparison that the test `item` shows an arm of."""
        point = item.callspec.params["point"]
        assert point is None or isinstance(point, int)
        return cls(item.nodeid.partition("[")[0], point)


@dataclass
class Run:
    """What the tests of one run share."""

    config: pytest.Config
    selected: dict[Key, list[str]] = field(default_factory=dict)
    weights: dict[Key, float] = field(default_factory=dict)
    measured: dict[Key, Measured] = field(default_factory=dict)
    budget: Budget | None = None

    def select(self, items: list[pytest.Item]) -> None:
        """Note the arms that are left after -k and the like: those will be measured, with their controls."""
        for item in items:
            marker = item.get_closest_marker("compares")
            if marker is not None and isinstance(item, pytest.Function):
                self.selected.setdefault(Key.of(item), []).append(str(item.callspec.params["arm"]))
                self.weights[Key.of(item)] = marker.kwargs.get("weight", 1.0)
        # Every run needs an A/A ratio: what it makes of two identical arms is what its other ratios are worth.
        if self.selected and not any(arm.endswith(AGAIN) for arms in self.selected.values() for arm in arms):
            next(iter(self.selected.values())).append(AGAIN)

    def measure(self, key: Key, comparison: Comparison) -> Measured:
        """The comparison's measurement: made, recorded and shown when the first of its arms asks for it."""
        if key not in self.measured:
            device, started = self.config.getoption("--device"), time.perf_counter()
            measured = measure(
                comparison,
                only={comparison.control + AGAIN if arm == AGAIN else arm for arm in self.selected[key]},
                seconds=self._allot(key),
                clock=_clock(device),
                peak=lambda work: _peak(work, device),
            )
            # The judge holds float64 logits, hundreds of megabytes; it has spoken.
            measured.comparison = dataclasses.replace(comparison, verify=_spoken)
            wall = time.perf_counter() - started
            recorder_of(self.config).write({**measured.row(), **self._circumstances(), "wall_seconds": wall})
            show(self.config, measured, wall)
            self.measured[key] = measured
        return self.measured[key]

    def twins(self) -> dict[str, Ratio]:
        """The ratio of each pair of identical arms, by comparison."""
        return {
            measured.comparison.label: ratio
            for measured in self.measured.values()
            for name, ratio in measured.ratios.items()
            if name.endswith(AGAIN)
        }

    def _allot(self, key: Key) -> float:
        if self.budget is None:
            self.budget = Budget(seconds(self.config), list(self.weights.values()))
        return self.budget.allot(self.weights[key])

    def _circumstances(self) -> dict[str, Any]:
        return {
            "subject": subject_of(self.config).name,
            "size": self.config.getoption("--size"),
            "device": self.config.getoption("--device"),
            "threads": torch.get_num_threads(),
            "quick": self.config.getoption("--quick"),
            "load": load(),
        }


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


def _peak(work: Work, device: str) -> dict[str, int]:
    work.prepare()
    return peak_bytes(work.call, device=device)


def _spoken(name: str, work: Work) -> Finding:
    raise AssertionError("a comparison is verified once")
