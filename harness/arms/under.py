"""The ceilings that the arms of a run are held under, chosen once and then measured in every round."""

from __future__ import annotations

import functools
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch

from harness.ceilings import LARGEST_BUFFER_BYTES, MIB, Roof, Yardstick, read, yardsticks
from harness.compare import Work
from harness.costs import Cost
from harness.errors import Missing
from harness.size import Size

# Less than this is read from a core's own cache, where a bound by bandwidth says nothing.
CACHED_BYTES = 32 * MIB
CALIBRATING_CALLS = 3


class UnderCeilings:
    """`harness.compare.Ceilings` of one machine and size.

    Of the shapes of each type's products the fastest is kept. What is read is as much as the arms read, since a
    machine's last cache may hold some of it. `notes` says which ceilings cannot be had here.
    """

    def __init__(self, device: str, size: Size) -> None:
        self.device, self.size = device, size
        self.notes: list[str] = []
        self._chosen: dict[str, dict[str, Yardstick]] = {}
        self._in_force: dict[str, Yardstick] = {}
        self._built: dict[str, Work] = {}

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """The yardsticks for arms that do `works`: products in their types, reading, copying, launching."""
        self._in_force = {}
        types = dict.fromkeys(work.computes for work in works if work.flops)
        for dtype in (*types, ""):
            if dtype not in self._chosen:
                self._chosen[dtype] = self._calibrated(dtype)
            self._in_force |= self._chosen[dtype]
        for count in sorted({_read_bytes(work) for work in works if _read_bytes(work)}, reverse=True)[:2]:
            name = f"read {count // MIB} MiB"
            build = functools.partial(read, self.device, buffer_bytes=count)
            self._in_force[name] = Yardstick(name, "bandwidth", build)
        self._built = {name: stick.build() for name, stick in self._in_force.items()}
        return self._built

    def _calibrated(self, dtype: str) -> dict[str, Yardstick]:
        """The fastest of the products in `dtype`; for no type, what does not depend on it."""
        sticks = yardsticks(self.device, self.size, dtypes=[dtype] if dtype else [])
        if not dtype:
            return {stick.name: stick for stick in sticks if stick.name in ("copy", "launch")}
        rates: dict[Yardstick, float] = {}
        for stick in sticks:
            if stick.regime == "compute":
                try:
                    rates[stick] = stick.measured(work := stick.build(), [_best(work, self.device)]).rate
                except Missing as missing:
                    self.notes.append(f"no ceiling of products in {dtype}: {missing}")
                    break
        best = max(rates, key=rates.__getitem__, default=None)
        return {best.name: best} if best else {}

    def under(self, work: Work, times: Sequence[float], yardsticks: Mapping[str, Sequence[float]]) -> Any:
        """Where an arm's times stand under the ceilings of the same rounds; None where it has no closed form."""
        reads = f"read {_read_bytes(work) // MIB} MiB"
        ceilings = [
            self._in_force[name].measured(self._built[name], seconds)
            for name, seconds in yardsticks.items()
            if not name.startswith(("read", "copy")) or name == reads
        ]
        cost = Cost(work.flops or 0.0, (work.moved_bytes or 0.0) if reads in yardsticks else 0.0)
        if not (cost.flops or cost.moved_bytes):
            return None
        found = Roof(tuple(ceilings)).fraction(cost, times, dtype=work.computes, operations=work.operations or 0)
        if found is None:
            return None
        bounds = {"fraction": found.value, "low": found.low, "high": found.high}
        return {"name": found.name, "regime": found.regime, **bounds, "impossible": found.impossible}


def _read_bytes(work: Work) -> int:
    """How much a reading yardstick for this work reads: as much, up to what is beyond every cache; 0 for little."""
    moved = int(work.moved_bytes or 0) // MIB * MIB
    return 0 if moved < CACHED_BYTES else min(moved, LARGEST_BUFFER_BYTES)


def _best(work: Work, device: str) -> float:
    times = []
    for _ in range(CALIBRATING_CALLS):
        start = time.perf_counter()
        work.call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)
