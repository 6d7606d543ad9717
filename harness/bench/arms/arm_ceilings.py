"""The ceilings of the machine for the arms of a comparison, measured in the same rounds."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Collection, Mapping, Sequence

from harness.bench.ceilings import LARGEST_BUFFER_BYTES, MIB, CeilingSpec, Roofline, ceiling_specs, read
from harness.bench.costs import Cost
from harness.bench.work import Work
from harness.core.errors import Missing
from harness.core.record_files import Row
from harness.core.sizes import Size

# Fewer bytes than this may be read from a cache, where a bound by the bandwidth of memory says nothing.
CACHED_BYTES = 128 * MIB
SHAPES = ("square", "c_fc")  # in every run: runs are compared by the time of the first of them


class ArmCeilings:
    """The `harness.bench.measurement.Ceilings` of one device and model size.

    Matrix products are measured as a square, which suits every library, and at the shape of the model's widest layer;
    the faster of the two is the ceiling. The reading ceiling reads as much as the arms do, because the last cache may
    contain a part of less.
    """

    def __init__(self, device: str, size: Size) -> None:
        self.device, self.size = device, size
        self._built: dict[str, tuple[CeilingSpec, Work]] = {}

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """Return the ceilings for arms that do `works`: products in their dtypes, reading, copying, launching."""
        dtypes = dict.fromkeys(work.computes for work in works if work.flops)
        every = ceiling_specs(self.device, self.size, dtypes=["float32", *dtypes])
        wanted = [spec for spec in every if spec.name.endswith(SHAPES) or spec.name in ("copy", "launch")]
        for count in sorted({_read_bytes(work) for work in works if _read_bytes(work)}, reverse=True)[:2]:
            build = functools.partial(read, self.device, buffer_bytes=count)
            wanted.append(CeilingSpec(f"read {count // MIB} MiB", "bandwidth", build))
        for spec in wanted:
            if spec.name not in self._built:  # buffers of a gigabyte are not filled again for each comparison
                with contextlib.suppress(Missing):  # products in 16 bits that are emulated here have no ceiling
                    self._built[spec.name] = spec, spec.build()
        return {spec.name: self._built[spec.name][1] for spec in wanted if spec.name in self._built}

    def fraction(self, work: Work, times: Sequence[float], ceilings: Mapping[str, Sequence[float]]) -> Row | None:
        """Return the fraction of its ceiling that an arm reached in the same rounds; None if it has no closed form."""
        reads = f"read {_read_bytes(work) // MIB} MiB"
        measured = [
            spec.measured(built, ceilings[name])
            for name, (spec, built) in self._built.items()
            if name in ceilings and (not name.startswith(("read", "copy")) or name == reads)
        ]
        cost = Cost(work.flops or 0.0, (work.moved_bytes or 0.0) if reads in ceilings else 0.0)
        if not (cost.flops or cost.moved_bytes):
            return None
        found = Roofline(tuple(measured)).fraction(cost, times, dtype=work.computes, operations=work.operations or 0)
        if found is None:
            return None
        bounds = {"fraction": found.value, "low": found.low, "high": found.high}
        return {"name": found.name, "regime": found.regime, **bounds, "impossible": found.impossible}


def _read_bytes(work: Work) -> int:
    """Return the bytes that a reading ceiling for this work reads: the next power of two; 0 below CACHED_BYTES."""
    moved = int(work.moved_bytes or 0)
    return 0 if moved < CACHED_BYTES else min(2 ** (moved - 1).bit_length(), LARGEST_BUFFER_BYTES)
