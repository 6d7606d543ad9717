"""The witness of one call: which kernels, dtypes, attention algorithm and compiled graphs ran, by torch.profiler."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from harness.bench.memory import Trace, allocations, trace
from harness.bench.witness.attention import attention_by_formula, sdpa_algorithms
from harness.bench.witness.operations import Operation, operations
from harness.bench.witness.products import matrix_products
from harness.core.record_files import Row

TOP_KERNELS, SMALLEST_SHARE = 8, 0.01
_COMPILING = "entire_frame_compile"  # the span that Dynamo records around each compilation


@dataclass(frozen=True)
class Witness:
    """What one call ran, as the profiler saw it.

    flops: FLOPs of the matrix products, fused attention included, by the dtype of their operands.
    products_seconds: the time inside those products; None on CUDA, where the host only launches them.
    attention: the operation that shows each algorithm. "flash", "efficient", "cudnn" and "math" are algorithms of
        scaled_dot_product_attention; "formula" is a softmax between two products outside of it.
    scores: the sizes (heads of all sequences, queries, keys) of the largest score matrix that was written, or None.
    kernels: the operations with most time of their own (on CUDA the kernels), each with how often it ran and its share
        of the total time.
    operations: how many operations Python, autograd or a compiled graph issued (on CUDA: how many kernels were
        launched). On the CPU, what a compiled graph computes in its own C++ is not counted.
    graphs: how many times a compiled graph was called.
    flops_in_graphs: the FLOPs of the products that compiled graphs issued.
    ledgers, largest_bytes, seconds: the peak memory, the largest allocation, and the time under the profiler; see
        `harness.bench.memory.Trace`.
    """

    flops: Mapping[str, int]
    products_seconds: float | None
    attention: Mapping[str, str]
    scores: tuple[int, int, int] | None
    kernels: tuple[str, ...]
    operations: int
    graphs: int
    flops_in_graphs: int
    ledgers: Mapping[str, int]
    largest_bytes: int
    seconds: float = 0.0

    @property
    def products(self) -> dict[str, float]:
        """The share of the matrix products' FLOPs by the dtype that they ran in, the largest first."""
        total = sum(self.flops.values())
        shares = sorted(self.flops.items(), key=lambda item: -item[1])
        return {dtype: count / total for dtype, count in shares} if total else {}

    @property
    def compiled(self) -> bool:
        """True if a graph that Inductor compiled ran."""
        return self.graphs > 0

    @property
    def peak_bytes(self) -> int:
        """The peak memory by the exact ledger."""
        return next(iter(self.ledgers.values()), 0)

    def as_row(self, *, busy_threads: float | None = None) -> Row:
        """Return the entry `witness` of the arm's row in the record."""
        return {
            "products": self.products,
            "products_seconds": self.products_seconds,
            "attention": list(self.attention),
            "scores": list(self.scores) if self.scores else None,
            "kernels": list(self.kernels),
            "compiled": self.compiled,
            "operations": self.operations,
            "largest_bytes": self.largest_bytes,
            "busy_threads": busy_threads,
        }


def witness(call: Callable[[], object], *, device: str = "cpu") -> Witness:
    """Run `call` once under the profiler and return what ran; run it again if the first time compiled it."""
    traced = trace(call, device=device)
    if any(event.get("name") == _COMPILING for event in traced.events):
        traced = trace(call, device=device)
    return examine(traced)


def busy_threads(call: Callable[[], object], *, repeats: int = 3) -> float:
    """Return how many cores `repeats` calls kept busy: the CPU time of the process over the wall time.

    OpenMP's threads must sleep while they wait (OMP_WAIT_POLICY=PASSIVE, which the plugin sets), or idling counts.
    """
    busy, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.process_time() - busy) / (time.perf_counter() - wall)


def examine(traced: Trace) -> Witness:
    """Return the witness of a trace that was recorded with shapes."""
    ran = list(operations(traced.events))
    products = matrix_products(ran)
    flops: Counter[str] = Counter()
    in_graphs = 0
    for product in products.values():
        flops[product.dtype] += product.flops
        in_graphs += product.flops if product.operation.graph else 0
    launched = [event for event in traced.events if event.get("cat") == "kernel"]
    formula, scores = attention_by_formula(ran, products)
    sizes = [int(account["Bytes"]) for account in allocations(traced.events, "cuda" if launched else "cpu")]
    issued = sum(one.is_operator and not one.nearest_caller(lambda caller: caller.is_operator) for one in ran)
    return Witness(
        flops=dict(flops),
        products_seconds=None if launched else math.fsum(one.event["dur"] for one in products) / 1e6,
        attention={**sdpa_algorithms(ran), **formula},
        scores=scores,
        kernels=_top_kernels(launched, ran),
        operations=len(launched) or issued,
        graphs=sum(one.is_graph for one in ran),
        flops_in_graphs=in_graphs,
        ledgers=traced.ledgers,
        largest_bytes=max(sizes, default=0),
        seconds=traced.seconds,
    )


def _top_kernels(launched: Sequence[dict[str, Any]], ran: Sequence[Operation]) -> tuple[str, ...]:
    """Return the names that took the most time, each with its count and share.

    They are CUDA's kernels, or on the CPU the operations without those that they called; compiled code is one name.
    """
    spans = [(event["name"], event["dur"]) for event in launched] or [
        ("compiled graph" if one.is_graph else one.name, one.own_time) for one in ran if one.is_operator or one.is_graph
    ]
    counts = Counter(name for name, _ in spans)
    durations: Counter[str] = Counter()
    for name, duration in spans:
        durations[name] += duration
    total = durations.total()
    return tuple(
        f"{name} x{counts[name]} ({spent / total:.0%})"
        for name, spent in durations.most_common(TOP_KERNELS)
        if spent > 0 and spent >= SMALLEST_SHARE * total
    )
