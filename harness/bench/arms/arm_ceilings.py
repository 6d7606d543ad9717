"""The ceilings of the machine for the arms of a comparison, measured in the same rounds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence

from harness.bench.ceilings import LARGEST_BUFFER_BYTES, MIB, CeilingSpec, Roofline, ceiling_specs, read
from harness.bench.costs import Cost
from harness.bench.statistics import median
from harness.bench.work import Work
from harness.core.errors import Missing
from harness.core.record_files import Row
from harness.core.sizes import Size

# Fewer bytes than this may all come from a cache, and starting the threads decides the time of reading them.
CACHED_BYTES = 64 * MIB
MOST_READS = 4  # amounts of bytes for which reading is measured beside one comparison
SHAPES = ("square", "c_fc")  # in every run: runs are compared by the time of the first of them


class ArmCeilings:
    """The `harness.bench.measurement.Ceilings` of one device and model size.

    Matrix products are measured as a square, which suits every library, and at the shape of the model's widest layer;
    the faster of the two is the ceiling. The reading ceiling reads as much as one pass of the arm does, because the
    last cache contains a part of it; no more than that, because an arm whose bytes all fit would be above it.
    """

    def __init__(self, device: str, size: Size) -> None:
        self.device, self.size = device, size
        self._built: dict[str, tuple[CeilingSpec, Work]] = {}

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """Return the ceilings for arms that do `works`: products in their dtypes, reading, copying, launching."""
        dtypes = dict.fromkeys(work.computes for work in works if work.flops)
        every = ceiling_specs(self.device, self.size, dtypes=["float32", *dtypes])
        wanted = [spec for spec in every if spec.name.endswith(SHAPES) or spec.name in ("copy", "launch")]
        for count in sorted({_read_bytes(work) for work in works if _read_bytes(work)}, reverse=True)[:MOST_READS]:
            build = functools.partial(read, self.device, buffer_bytes=count)
            wanted.append(CeilingSpec(f"read {count // MIB} MiB", "bandwidth", build))
        names = {spec.name for spec in wanted}
        for name in [name for name in self._built if name.startswith("read") and name not in names]:
            del self._built[name]  # half a gigabyte each
        for spec in wanted:
            if spec.name not in self._built:  # buffers of a gigabyte are not filled again for each comparison
                with contextlib.suppress(Missing):  # products in 16 bits that are emulated here have no ceiling
                    self._built[spec.name] = spec, spec.build()
        return {spec.name: self._built[spec.name][1] for spec in wanted if spec.name in self._built}

    def fraction(self, work: Work, times: Sequence[float], ceilings: Mapping[str, Sequence[float]]) -> Row | None:
        """Return the fraction of its ceiling that an arm reached in the same rounds.

        The ceiling is the one that allows the arm the least speed. None if the arm has no closed form, or if that
        ceiling is not known: its bytes limit it, and they are so few that a cache may contain them.
        """
        own = _read_bytes(work)
        kept = {
            name: (spec, built)
            for name, (spec, built) in self._built.items()
            # A longer read takes less of its time for starting threads, so it may be the faster one.
            if name in ceilings and (not name.startswith("read") or 0 < own <= (built.moved_bytes or 0))
        }
        reads = any(name.startswith("read") for name in kept)
        measured = [spec.measured(built, ceilings[name]) for name, (spec, built) in kept.items() if name != "copy"]
        cost = Cost(work.flops or 0.0, (work.moved_bytes or 0.0) if reads else 0.0)
        if not (cost.flops or cost.moved_bytes):
            return None
        found = Roofline(tuple(measured)).fraction(cost, times, dtype=work.computes, operations=work.operations or 0)
        if found is None:
            return None
        if work.moved_bytes and not reads and "copy" in kept and not found.impossible:
            spec, built = kept["copy"]
            moving = work.moved_bytes / spec.measured(built, ceilings["copy"]).rate
            if moving > found.value * median(times):
                return None
        bounds = {"fraction": found.value, "low": found.low, "high": found.high}
        return {"name": found.name, "regime": found.regime, **bounds, "impossible": found.impossible}


def _read_bytes(work: Work) -> int:
    """Return the bytes that a reading ceiling for this work reads: those of a pass, less up to an eighth.

    0 below CACHED_BYTES.
    """
    moved = int((work.moved_bytes or 0) / work.passes)
    step = 2 ** max(0, moved.bit_length() - 4)  # an eighth of the power of two below, so that arms share ceilings
    return 0 if moved < CACHED_BYTES else min(moved // step * step, LARGEST_BUFFER_BYTES)
