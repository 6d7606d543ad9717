"""The ceilings that the arms of a run are held under: chosen for the arms of a comparison, measured in its rounds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from harness.bench.ceilings import LARGEST_BUFFER_BYTES, MIB, RoofPosition, Yardstick, read, yardsticks
from harness.bench.comparison import Work
from harness.bench.costs import Cost
from harness.core.errors import Missing
from harness.core.sizes import Size

# Less than this may be read from a cache, where a bound by the memory's bandwidth says nothing.
CACHED_BYTES = 128 * MIB
SHAPES = ("square", "c_fc")  # whatever the run: what the first took is what runs are compared by


class ArmCeilings:
    """`harness.bench.comparison.Ceilings` of one machine and size.

    Products are measured as a square, which suits every library, and at the shape of the model's widest layer; the
    faster of the two is the ceiling. What is read is as much as the arms read, since a machine's last cache may hold
    some of it.
    """

    def __init__(self, device: str, size: Size) -> None:
        self.device, self.size = device, size
        self._built: dict[str, tuple[Yardstick, Work]] = {}

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """The yardsticks for arms that do `works`: products in their types, reading, copying, launching."""
        types = dict.fromkeys(work.computes for work in works if work.flops)
        every = yardsticks(self.device, self.size, dtypes=["float32", *types])
        wanted = [stick for stick in every if stick.name.endswith(SHAPES) or stick.name in ("copy", "launch")]
        for count in sorted({_read_bytes(work) for work in works if _read_bytes(work)}, reverse=True)[:2]:
            build = functools.partial(read, self.device, buffer_bytes=count)
            wanted.append(Yardstick(f"read {count // MIB} MiB", "bandwidth", build))
        for stick in wanted:
            if stick.name not in self._built:  # buffers of a gigabyte are not filled anew for each comparison
                with contextlib.suppress(Missing):  # products in 16 bits that are emulated here have no ceiling
                    self._built[stick.name] = stick, stick.build()
        return {stick.name: self._built[stick.name][1] for stick in wanted if stick.name in self._built}

    def under(self, work: Work, times: Sequence[float], yardsticks: Mapping[str, Sequence[float]]) -> Any:
        """Where an arm's times stand under the ceilings of the same rounds; None where it has no closed form."""
        reads = f"read {_read_bytes(work) // MIB} MiB"
        ceilings = [
            stick.measured(built, yardsticks[name])
            for name, (stick, built) in self._built.items()
            if name in yardsticks and (not name.startswith(("read", "copy")) or name == reads)
        ]
        cost = Cost(work.flops or 0.0, (work.moved_bytes or 0.0) if reads in yardsticks else 0.0)
        if not (cost.flops or cost.moved_bytes):
            return None
        found = RoofPosition(tuple(ceilings)).fraction(
            cost, times, dtype=work.computes, operations=work.operations or 0
        )
        if found is None:
            return None
        bounds = {"fraction": found.value, "low": found.low, "high": found.high}
        return {"name": found.name, "regime": found.regime, **bounds, "impossible": found.impossible}


def _read_bytes(work: Work) -> int:
    """How much a reading yardstick for this work reads: about as much (the next power of two); 0 for little."""
    moved = int(work.moved_bytes or 0)
    return 0 if moved < CACHED_BYTES else min(2 ** (moved - 1).bit_length(), LARGEST_BUFFER_BYTES)
