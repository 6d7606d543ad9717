"""The ceilings of this machine, measured beside the arms: matrix products, streaming reads, copies, launches.

No peak is looked up: a table of published peaks is wrong for the clock, the threads and the share of the machine that a
run really has. Each ceiling is a `Work`, so it takes turns with the arms and sees the same machine. An arm's fraction
of its ceiling is then a paired ratio like any other, with an interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from harness.bench.costs import Cost
from harness.bench.statistics import median, paired_ratio
from harness.bench.work import Work
from harness.core.errors import MissingResource
from harness.core.sizes import Size

Regime = Literal["compute", "bandwidth", "launch"]

MIB = 2**20
# A buffer must not still be in the cache from the last call, so it is four times the last level. It is limited, because
# a virtual machine may report the cache of the whole host.
CACHE_MULTIPLE = 4
UNKNOWN_CACHE_BYTES = 64 * MIB
LARGEST_BUFFER_BYTES = 512 * MIB
# Products of some milliseconds on a core; a GPU needs larger ones to fill it. The square one takes about a millisecond,
# so that its best call finds a quiet moment on a busy machine: beside 8 other processes, calls of 12 ms reached 44
# GFLOP/s on a core, and calls of 1.5 ms reached 180. A longer ceiling would put short arms above it.
GEMM_TOKENS = {"cpu": 512, "cuda": 16384}
GEMM_SIDE = {"cpu": 512, "cuda": 8192}
HEAD_SHARE = 8  # the head is about 16 times as wide as c_fc, so it gets an eighth of the rows
LAUNCHES = 1000

CPUINFO = Path("/proc/cpuinfo")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Flags of /proc/cpuinfo (x86, Arm) for arithmetic in 16 bits. PyTorch emulates it on a processor without one.
SIXTEEN_BIT_FLAGS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def gemm(device: str, dtype: str, *, m: int, n: int, k: int) -> Work:
    """Return the product (m, k) @ (k, n) into allocated memory: 2·m·n·k FLOP.

    Raises MissingResource if the device is absent or only emulates `dtype`.
    """
    require(device, dtype)
    make = functools.partial(torch.randn, device=device, dtype=getattr(torch, dtype))
    left, right = make(m, k), make(k, n)
    product = torch.empty(m, n, device=device, dtype=left.dtype)
    call = _waiting(device, lambda: torch.mm(left, right, out=product))
    moved = left.nbytes + right.nbytes + product.nbytes
    return Work(call=call, answer=call, tokens=0, flops=2 * m * n * k, moved_bytes=moved, operations=1, computes=dtype)


def gemm_shapes(size: Size, *, tokens: int, side: int) -> dict[str, tuple[int, int, int]]:
    """Return (m, n, k) of the model's products over `tokens` positions, and of a square that suits every library."""
    C, V = size.width, size.vocab_size
    return {
        "c_fc": (tokens, 4 * C, C),
        "mlp.c_proj": (tokens, C, 4 * C),
        "head": (max(1, tokens // HEAD_SHARE), V, C),
        "square": (side, side, side),
    }


def read(device: str, *, buffer_bytes: int | None = None) -> Work:
    """Return a read of every byte of a buffer larger than the last-level cache: the dot product of its halves.

    This is the fastest of torch's reductions: it reads 14.2 GB/s on a core on which the sum reads 12.1. With an arm's
    `moved_bytes` as `buffer_bytes`, it measures what reading as much costs on a machine whose cache may contain it.
    """
    require(device)
    half = (buffer_bytes or streaming_bytes(device)) // 8
    # Ones, not zeros: untouched zeros are all one page of the kernel.
    left, right = torch.ones(half, device=device), torch.ones(half, device=device)
    call = _waiting(device, lambda: torch.dot(left, right))
    return Work(call=call, answer=call, tokens=0, moved_bytes=2 * left.nbytes, operations=1)


def copy(device: str, *, buffer_bytes: int | None = None) -> Work:
    """Return a copy of one half of a buffer larger than the last-level cache to the other half."""
    require(device)
    half = (buffer_bytes or streaming_bytes(device)) // 8
    source, target = torch.ones(half, device=device), torch.ones(half, device=device)
    call = _waiting(device, lambda: target.copy_(source))
    return Work(call=call, answer=call, tokens=0, moved_bytes=2 * source.nbytes, operations=1)


def launch(device: str) -> Work:
    """Return a thousand operations on one element each, which Python calls one by one.

    On CUDA they are queued, and the call waits for the queue: the time is that of launching, or the GPU's own minimum
    if that is longer. Compiled code and a replayed CUDA graph do not launch from Python, so they can go below it.
    """
    require(device)
    element = torch.ones(1, device=device)

    def call() -> torch.Tensor:
        for _ in range(LAUNCHES):
            element.neg_()
        return element

    waiting = _waiting(device, call)
    return Work(call=waiting, answer=waiting, tokens=0, operations=LAUNCHES)


def require(device: str, dtype: str = "float32") -> None:
    """Raise MissingResource unless `device` is available and has arithmetic for `dtype`."""
    kind = torch.device(device).type
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise MissingResource("ceilings of CUDA: torch finds no CUDA device on this machine")
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise MissingResource(f"ceiling of bfloat16: {torch.cuda.get_device_name(device)} only emulates it")
    elif kind == "cpu" and not _computes(dtype, _cpu_flags()):
        wanted = ", ".join(sorted(SIXTEEN_BIT_FLAGS[dtype]))
        raise MissingResource(f"ceiling of {dtype}: this processor emulates it; it has none of {wanted}")


def _computes(dtype: str, flags: set[str]) -> bool:
    return not flags or dtype not in SIXTEEN_BIT_FLAGS or bool(flags & SIXTEEN_BIT_FLAGS[dtype])


def _cpu_flags() -> set[str]:
    """Return the processor's features as Linux names them; an empty set if they cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def last_level_cache_bytes(device: str) -> int:
    """Return the size of the largest cache as the system reports it; 64 MiB if it does not."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_cache_bytes(path.read_text(encoding="utf-8")) for path in CPU_CACHES.glob("index*/size")]
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


def _cache_bytes(text: str) -> int:
    """Return a size such as `491520K` in bytes."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def streaming_bytes(device: str) -> int:
    """Return the size of a buffer that must be read from memory: four last-level caches, at most 512 MiB."""
    return min(CACHE_MULTIPLE * last_level_cache_bytes(device), LARGEST_BUFFER_BYTES)


def _waiting(device: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """Return the call without gradients; on CUDA it returns when the device is done."""

    @torch.no_grad()
    def finished() -> Any:
        result = call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return finished


@dataclass(frozen=True)
class CeilingSpec:
    """One ceiling to measure: the regime that it bounds, how to build its work, and the dtype of its products."""

    name: str
    regime: Regime
    build: Callable[[], Work]
    dtype: str | None = None

    def measured(self, work: Work, seconds: Sequence[float]) -> Ceiling:
        """Return the ceiling that `work`, which `build` built, reached in `seconds`: block minima, round by round."""
        amounts = {"compute": work.flops, "bandwidth": work.moved_bytes, "launch": work.operations}
        amount = amounts[self.regime]
        assert amount is not None, f"{self.name} does not say how much it does"
        return Ceiling(self.name, self.regime, amount, tuple(seconds), self.dtype)


def ceiling_specs(device: str, size: Size, *, dtypes: Iterable[str] = ("float32",)) -> tuple[CeilingSpec, ...]:
    """Return all ceilings for arms that multiply in `dtypes`, with products at the model's shapes.

    They are cheap enough to be measured in every round.
    """
    kind = torch.device(device).type
    shapes = gemm_shapes(size, tokens=GEMM_TOKENS[kind], side=GEMM_SIDE[kind])
    products = (
        CeilingSpec(f"gemm {dtype} {name}", "compute", functools.partial(gemm, device, dtype, m=m, n=n, k=k), dtype)
        for dtype in dtypes
        for name, (m, n, k) in shapes.items()
    )
    return (
        *products,
        CeilingSpec("read", "bandwidth", functools.partial(read, device)),
        CeilingSpec("copy", "bandwidth", functools.partial(copy, device)),
        CeilingSpec("launch", "launch", functools.partial(launch, device)),
    )


@dataclass(frozen=True)
class Ceiling:
    """A measured ceiling: `amount` (FLOPs, bytes or operations) a call, and the seconds of one call in each round."""

    name: str
    regime: Regime
    amount: float
    seconds: tuple[float, ...]
    dtype: str | None = None

    @property
    def rate(self) -> float:
        """FLOP/s, bytes/s or operations/s in the median round."""
        return self.amount / median(self.seconds)


@dataclass(frozen=True)
class Bound:
    """The least time that a cost can take under a roofline, and the ceiling that sets it."""

    seconds: float
    ceiling: Ceiling


@dataclass(frozen=True)
class Fraction:
    """The fraction of its ceiling that an arm reached, with the 95% interval; 1 is the ceiling itself."""

    name: str
    regime: Regime
    value: float
    low: float
    high: float

    @property
    def impossible(self) -> bool:
        """True if the fraction is above 1: then the cost, the ceiling or the answer is wrong."""
        return self.low > 1


@dataclass(frozen=True)
class Roofline:
    """The roofline of one machine in one run: its ceilings."""

    ceilings: tuple[Ceiling, ...]

    def best(self, regime: Regime, *, dtype: str | None = None) -> Ceiling | None:
        """Return the highest ceiling of a regime (of products: in `dtype`), or None if none was measured."""
        found = [ceiling for ceiling in self.ceilings if ceiling.regime == regime and ceiling.dtype == dtype]
        return max(found, key=lambda ceiling: ceiling.rate, default=None)

    def bound(self, cost: Cost, *, dtype: str, operations: float = 0) -> Bound | None:
        """Return max(FLOPs / peak, bytes / bandwidth, operations · launch time), the roofline (Williams et al. 2009).

        Returns None unless every part of the cost has its ceiling: the missing one could be the bound. `operations` are
        those that Python launches one by one; 0 for compiled code.
        """
        amounts: Mapping[Regime, float] = {
            "compute": cost.flops,
            "bandwidth": cost.moved_bytes,
            "launch": operations,
        }
        bounds: list[Bound] = []
        for regime, amount in amounts.items():
            if amount:
                ceiling = self.best(regime, dtype=dtype if regime == "compute" else None)
                if ceiling is None:
                    return None
                bounds.append(Bound(amount / ceiling.rate, ceiling))
        return max(bounds, key=lambda bound: bound.seconds, default=None)

    def fraction(self, cost: Cost, seconds: Sequence[float], *, dtype: str, operations: float = 0) -> Fraction | None:
        """Return the least possible time over the measured time, paired round by round with the bounding ceiling.

        `seconds` are the arm's block minima in the rounds in which the ceilings were measured. Raises ValueError if the
        numbers of rounds differ or are fewer than an interval needs.
        """
        bound = self.bound(cost, dtype=dtype, operations=operations)
        if bound is None:
            return None
        ceiling = bound.ceiling
        # The time that the cost would have taken in each round at that round's rate.
        share = bound.seconds * ceiling.rate / ceiling.amount
        ratio = paired_ratio([share * once for once in ceiling.seconds], seconds)
        return Fraction(ceiling.name, ceiling.regime, ratio.ratio, ratio.low, ratio.high)
