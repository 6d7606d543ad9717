"""What this machine can do at most, measured beside the arms: matrix products, streaming reads, copies, launches.

No peak is looked up: a table of published peaks is wrong for the clock, the threads and the share of a machine that a
run really has. Each ceiling is a `Work`, so that it takes its turn in the rounds of the arms and sees the same machine;
an arm's fraction of it is then a paired ratio like any other, with an interval.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from harness.bench.comparison import Work
from harness.bench.costs import Cost
from harness.bench.statistics import median, paired_ratio
from harness.core.errors import MissingResource
from harness.core.sizes import Size

Regime = Literal["compute", "bandwidth", "launch"]

MIB = 2**20
# What is read must not still be in the cache from the last call: four times the last level, within reason. A virtual
# machine may report the cache of the whole host.
CACHE_MULTIPLE = 4
UNKNOWN_CACHE_BYTES = 64 * MIB
LARGEST_BUFFER_BYTES = 512 * MIB
# Products of some milliseconds on a core; a GPU needs larger ones to fill it. The square one takes about one, so that
# its best call finds a quiet moment on a machine with other work: beside 8 other processes calls of 12 ms reached 44
# GFLOP/s on a core and calls of 1.5 ms 180. A longer yardstick would put short arms above their ceiling.
GEMM_TOKENS = {"cpu": 512, "cuda": 16384}
GEMM_SIDE = {"cpu": 512, "cuda": 8192}
HEAD_SHARE = 8  # the head is some 16 times as wide as c_fc: it gets an eighth of the rows
LAUNCHES = 1000

CPUINFO = Path("/proc/cpuinfo")
CPU_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
# Flags of /proc/cpuinfo (x86, Arm) by which products run in 16 bits; without one PyTorch emulates them.
SIXTEEN_BIT_FLAGS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}


def gemm(device: str, dtype: str, *, m: int, n: int, k: int) -> Work:
    """(m, k) @ (k, n) into memory that is there already; 2·m·n·k FLOP.

    Raises MissingResource where the device is absent or computes `dtype` by emulation only.
    """
    require(device, dtype)
    make = functools.partial(torch.randn, device=device, dtype=getattr(torch, dtype))
    left, right = make(m, k), make(k, n)
    product = torch.empty(m, n, device=device, dtype=left.dtype)
    call = _waiting(device, lambda: torch.mm(left, right, out=product))
    moved = left.nbytes + right.nbytes + product.nbytes
    return Work(call=call, answer=call, tokens=0, flops=2 * m * n * k, moved_bytes=moved, operations=1, computes=dtype)


def gemm_shapes(size: Size, *, tokens: int, side: int) -> dict[str, tuple[int, int, int]]:
    """(m, n, k) of the model's products over `tokens` positions, and of a square one that suits every library."""
    C, V = size.width, size.vocab_size
    return {
        "c_fc": (tokens, 4 * C, C),
        "mlp.c_proj": (tokens, C, 4 * C),
        "head": (max(1, tokens // HEAD_SHARE), V, C),
        "square": (side, side, side),
    }


def read(device: str, *, buffer_bytes: int | None = None) -> Work:
    """Every byte of a buffer beyond the last-level cache, read once: the product of its halves, two streams at a time.

    Of torch's reductions this one reads the fastest: 14.2 GB/s on a core where the sum reaches 12.1. Pass an arm's own
    `moved_bytes` as `buffer_bytes` to learn what reading as much costs on a machine whose cache may hold it.
    """
    require(device)
    half = (buffer_bytes or streaming_bytes(device)) // 8
    # Ones, not zeros: untouched zeros are one page of the kernel's, read again and again.
    left, right = torch.ones(half, device=device), torch.ones(half, device=device)
    call = _waiting(device, lambda: torch.dot(left, right))
    return Work(call=call, answer=call, tokens=0, moved_bytes=2 * left.nbytes, operations=1)


def copy(device: str, *, buffer_bytes: int | None = None) -> Work:
    """Half of a buffer beyond the last-level cache copied onto the other: read once and written once."""
    require(device)
    half = (buffer_bytes or streaming_bytes(device)) // 8
    source, target = torch.ones(half, device=device), torch.ones(half, device=device)
    call = _waiting(device, lambda: target.copy_(source))
    return Work(call=call, answer=call, tokens=0, moved_bytes=2 * source.nbytes, operations=1)


def launch(device: str) -> Work:
    """A thousand of the smallest operation, one element each, as Python calls them one by one.

    On CUDA they are queued and the queue is waited for: the time is that of launching, or of the GPU's own minimum
    where that is longer. Neither compiled code nor a replayed CUDA graph launches from Python: they go below it.
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
    """Raise MissingResource unless `device` is there and has arithmetic for `dtype`."""
    kind = torch.device(device).type
    if kind == "cuda":
        if not torch.cuda.is_available():
            raise MissingResource("ceilings of CUDA: this machine has no CUDA device that torch sees")
        if dtype == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
            raise MissingResource(f"ceiling of bfloat16: {torch.cuda.get_device_name(device)} only emulates it")
    elif kind == "cpu" and not _computes(dtype, _cpu_flags()):
        wanted = ", ".join(sorted(SIXTEEN_BIT_FLAGS[dtype]))
        raise MissingResource(f"ceiling of {dtype}: this processor emulates it; it has none of {wanted}")


def _computes(dtype: str, flags: set[str]) -> bool:
    return not flags or dtype not in SIXTEEN_BIT_FLAGS or bool(flags & SIXTEEN_BIT_FLAGS[dtype])


def _cpu_flags() -> set[str]:
    """The processor's features as Linux names them; empty where they cannot be read."""
    try:
        lines = CPUINFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def last_level_cache_bytes(device: str) -> int:
    """The size of the largest cache before memory, as the system reports it; 64 MiB where it does not."""
    if torch.device(device).type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    sizes = [_cache_bytes(path.read_text(encoding="utf-8")) for path in CPU_CACHES.glob("index*/size")]
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


def _cache_bytes(text: str) -> int:
    """`491520K` in bytes."""
    units = {"K": 2**10, "M": 2**20, "G": 2**30}
    text = text.strip()
    return int(text[:-1]) * units[text[-1]] if text[-1] in units else int(text)


def streaming_bytes(device: str) -> int:
    """How long a buffer must be so that reading it is reading memory: four last-level caches, 512 MiB at the most."""
    return min(CACHE_MULTIPLE * last_level_cache_bytes(device), LARGEST_BUFFER_BYTES)


def _waiting(device: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """The call without gradients; on CUDA it returns when the device is done."""

    @torch.no_grad()
    def finished() -> Any:
        result = call()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize(device)
        return result

    return finished


@dataclass(frozen=True)
class Yardstick:
    """One ceiling to be measured: what it bounds, the dtype of its products, and how to build it."""

    name: str
    regime: Regime
    build: Callable[[], Work]
    dtype: str | None = None

    def measured(self, work: Work, seconds: Sequence[float]) -> Ceiling:
        """The ceiling that `work`, built by this yardstick, reached in `seconds`: block minima, round by round."""
        amounts = {"compute": work.flops, "bandwidth": work.moved_bytes, "launch": work.operations}
        amount = amounts[self.regime]
        assert amount is not None, f"{self.name} does not say how much it does"
        return Ceiling(self.name, self.regime, amount, tuple(seconds), self.dtype)


def yardsticks(device: str, size: Size, *, dtypes: Iterable[str] = ("float32",)) -> tuple[Yardstick, ...]:
    """All ceilings for arms that multiply in `dtypes`, cheap enough for every round: products at the model's shapes."""
    kind = torch.device(device).type
    shapes = gemm_shapes(size, tokens=GEMM_TOKENS[kind], side=GEMM_SIDE[kind])
    products = (
        Yardstick(f"gemm {dtype} {name}", "compute", functools.partial(gemm, device, dtype, m=m, n=n, k=k), dtype)
        for dtype in dtypes
        for name, (m, n, k) in shapes.items()
    )
    return (
        *products,
        Yardstick("read", "bandwidth", functools.partial(read, device)),
        Yardstick("copy", "bandwidth", functools.partial(copy, device)),
        Yardstick("launch", "launch", functools.partial(launch, device)),
    )


@dataclass(frozen=True)
class Ceiling:
    """What was reached: `amount` (FLOPs, bytes or operations) a call, and each round's seconds of one call."""

    name: str
    regime: Regime
    amount: float
    seconds: tuple[float, ...]
    dtype: str | None = None

    @property
    def rate(self) -> float:
        """FLOP/s, bytes/s or operations/s, by the median of the rounds."""
        return self.amount / median(self.seconds)


@dataclass(frozen=True)
class Bound:
    """The least time that a cost can take under a roof, and what sets it."""

    seconds: float
    ceiling: Ceiling


@dataclass(frozen=True)
class Fraction:
    """How near an arm came to its ceiling, with the 95% interval: 1 is the ceiling itself."""

    name: str
    regime: Regime
    value: float
    low: float
    high: float

    @property
    def impossible(self) -> bool:
        """Nothing beats what bounds it: the cost, the ceiling or the answer is not what it is taken for."""
        return self.low > 1


@dataclass(frozen=True)
class RoofPosition:
    """The ceilings of one machine in one run."""

    ceilings: tuple[Ceiling, ...]

    def best(self, regime: Regime, *, dtype: str | None = None) -> Ceiling | None:
        """The highest of a regime's ceilings (of products: those in `dtype`), or None where none was measured."""
        found = [ceiling for ceiling in self.ceilings if ceiling.regime == regime and ceiling.dtype == dtype]
        return max(found, key=lambda ceiling: ceiling.rate, default=None)

    def bound(self, cost: Cost, *, dtype: str, operations: float = 0) -> Bound | None:
        """max(FLOPs / peak, bytes / bandwidth, operations · launch time), the roofline (Williams et al. 2009).

        None unless every part of the cost has its ceiling: without one the bound could be another's.
        `operations` are those that Python launches one by one; none for compiled code.
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
        """Least time over time, paired round by round with the ceiling that bounds the whole run.

        `seconds` are the arm's block minima, in the rounds in which the ceilings were measured. ValueError when the
        rounds differ in number or are fewer than an interval needs.
        """
        bound = self.bound(cost, dtype=dtype, operations=operations)
        if bound is None:
            return None
        ceiling = bound.ceiling
        # What the cost would have taken in each round at that round's rate.
        share = bound.seconds * ceiling.rate / ceiling.amount
        ratio = paired_ratio([share * once for once in ceiling.seconds], seconds)
        return Fraction(ceiling.name, ceiling.regime, ratio.ratio, ratio.low, ratio.high)
