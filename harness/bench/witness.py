"""What a call really ran: kernels, number types, attention's algorithm, compiled graphs; and the claims it breaks."""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.bench.memory import Trace, allocations, trace
from harness.core.errors import HarnessError

TOP_KERNELS, LEAST_SHARE = 8, 0.01
# More than this part of the products must be where an arm says that it works.
MOST = 0.5

# The types' names in a trace are C++'s; torch's own are used here.
_TYPES = {
    "double": "float64",
    "float": "float32",
    "c10::Half": "float16",
    "c10::BFloat16": "bfloat16",
    "signed char": "int8",
    "unsigned char": "uint8",
    "int": "int32",
    "long int": "int64",
}
# Which arguments are multiplied: a matrix (..., m, k) by a matrix (..., k, n), or by a vector (k).
_PRODUCTS = {
    "aten::mm": (0, 1),
    "aten::bmm": (0, 1),
    "aten::addmm": (1, 2),
    "aten::addmm_": (1, 2),
    "aten::_addmm_activation": (1, 2),
    "aten::baddbmm": (1, 2),
    "aten::baddbmm_": (1, 2),
    "aten::_int_mm": (0, 1),
    "aten::_scaled_mm": (0, 1),
    "aten::mv": (0, 1),
    "aten::addmv": (1, 2),
    "aten::addmv_": (1, 2),
}
# (..., k) by a weight of (n, k), as oneDNN and MKL multiply it: only the last matrix among the next two arguments
# is the weight (packed weights and a summand come before it, a bias after it).
_LINEAR = ("aten::linear", "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear")
_SOFTMAX = ("aten::_softmax", "aten::exp", "aten::exp_")
_SDPA = "aten::_scaled_dot_product_"
_MATH = "aten::_scaled_dot_product_attention_math"
_FUSED = {"_flash_attention": "flash", "_efficient_attention": "efficient", "_cudnn_attention": "cudnn"}
_GRAPH = "## Call CompiledFxGraph"
_COMPILING = "entire_frame_compile"  # the span that Dynamo records around each compilation


@dataclass(frozen=True)
class Witness:
    """What one call ran, as the profiler saw it.

    `flops` are those of matrix products, fused attention included, by the type of their operands. `attention` has
    the operation that gave each algorithm away: "flash", "efficient", "cudnn" and "math" are those of
    scaled_dot_product_attention, "formula" is a softmax between two products outside of it. `scores` are the sizes
    (heads of all sequences, queries, keys) of the largest score matrix that was written out, or None.
    `products_seconds` is the time inside of those products; None on CUDA, where the host only launches them.
    `kernels` are the operations with most time of their own (on CUDA the kernels), with how often they ran and their
    share of the time of all.
    `operations` were issued by Python, autograd or a compiled graph (on CUDA: kernels launched); what a compiled
    graph computes in C++ of its own is not among them, on the CPU. `graphs` counts calls of compiled graphs, and
    `flops_in_graphs` are those of the products that they issued. Bytes and `seconds`: see `harness.bench.memory.Trace`.
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
        """The share of the matrix products' FLOPs by the type that they computed in, the largest first."""
        whole = sum(self.flops.values())
        shares = sorted(self.flops.items(), key=lambda item: -item[1])
        return {dtype: count / whole for dtype, count in shares} if whole else {}

    @property
    def compiled(self) -> bool:
        """Whether a graph that Inductor compiled ran."""
        return self.graphs > 0

    @property
    def peak_bytes(self) -> int:
        """The exact ledger's peak."""
        return next(iter(self.ledgers.values()), 0)

    def as_row(self, *, busy_threads: float | None = None) -> dict[str, Any]:
        """The arm's `witness` in a comparison's record."""
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
    """Run `call` once and say what ran; once more where the first time went into compiling it."""
    traced = trace(call, device=device)
    if any(event.get("name") == _COMPILING for event in traced.events):
        traced = trace(call, device=device)
    return examine(traced)


def busy_threads(call: Callable[[], object], *, repeats: int = 3) -> float:
    """How many cores `repeats` calls kept busy: the process's CPU time over the wall's.

    OpenMP's threads must sleep while they wait (OMP_WAIT_POLICY=PASSIVE, which the plugin sets), or idling counts.
    """
    busy, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        call()
    return (time.process_time() - busy) / (time.perf_counter() - wall)


def refusal(witness: Witness, *, claims: Mapping[str, Any], flops: float | None = None) -> str | None:
    """Why an arm that makes these claims did not run what it says, in one line; None when it did.

    Claims: `dtype` (most products in it), `attention` (an algorithm's name, or several that may run), `compiled`
    (true: most products in compiled graphs; false: no graph), `quadratic` (whether a score matrix of all queries by
    all keys is written out). What could not be seen is no pass. `flops` are those of the work by closed form: where
    most of them went unseen, `dtype` is refused too. Raises HarnessError for a claim of another name.
    """
    judges = {
        "dtype": lambda claimed: _refused_dtype(witness, claimed, flops),
        "attention": lambda claimed: _refused_attention(witness, claimed),
        "compiled": lambda claimed: _refused_compiled(witness, claimed),
        "quadratic": lambda claimed: _refused_quadratic(witness, claimed),
    }
    if unknown := set(claims) - set(judges):
        raise HarnessError(f"an arm claims {sorted(unknown)}; what can be witnessed is {sorted(judges)}")
    return next(filter(None, (judges[name](claimed) for name, claimed in claims.items())), None)


def _refused_dtype(witness: Witness, claimed: str, flops: float | None) -> str | None:
    seen = sum(witness.flops.values())
    if not seen:
        return f"claims {claimed}, but no matrix product could be seen"
    if witness.products.get(claimed, 0.0) <= MOST:
        found = ", ".join(f"{dtype} ({share:.0%})" for dtype, share in witness.products.items())
        return f"claims {claimed}, but its matrix products ran in {found}"
    if flops and seen <= MOST * flops:
        return f"claims {claimed}, but only {seen / flops:.0%} of its matrix products could be seen"
    return None


def _refused_attention(witness: Witness, claimed: str | Sequence[str]) -> str | None:
    allowed = [claimed] if isinstance(claimed, str) else list(claimed)
    if not witness.attention:
        return f"claims {' or '.join(allowed)} attention, but no attention could be seen"
    others = [f"{name} ({operation})" for name, operation in witness.attention.items() if name not in allowed]
    return f"claims {' or '.join(allowed)} attention, but it ran as {', '.join(others)}" if others else None


def _refused_compiled(witness: Witness, claimed: bool) -> str | None:
    if not claimed:
        return f"claims not to be compiled, but called {witness.graphs} compiled graphs" if witness.compiled else None
    if not witness.compiled:
        return "claims to be compiled, but no compiled graph ran"
    whole = sum(witness.flops.values())
    if whole and witness.flops_in_graphs <= MOST * whole:
        outside = 1 - witness.flops_in_graphs / whole
        return f"claims to be compiled, but {outside:.0%} of its matrix products ran outside the compiled graphs"
    return None


def _refused_quadratic(witness: Witness, claimed: bool) -> str | None:
    if not witness.attention:
        return f"claims {'a' if claimed else 'no'} score matrix, but no attention could be seen"
    heads, queries, keys = witness.scores or (0, 0, 0)
    # A row of scores for one new token is no matrix, nor is the strip of a few queries that chunked attention writes.
    quadratic = max(queries, keys) < 2 * min(queries, keys)
    if claimed and not quadratic:
        return f"claims a score matrix, but its attention ({', '.join(witness.attention)}) wrote none"
    if quadratic and not claimed:
        return f"claims no score matrix, but wrote one of {heads} x {queries} x {keys}"
    return None


@dataclass(eq=False)
class _Node:
    """An event of the trace among those that it ran inside of."""

    event: dict[str, Any]
    above: _Node | None
    own_time: float
    operation: bool = field(init=False)

    def __post_init__(self) -> None:
        # Operators have a namespace; so have two of autograd's spans, which are no operators.
        self.operation = "::" in self.name and not self.name.startswith(("autograd::", "torch::autograd"))

    @property
    def name(self) -> str:
        name: str = self.event["name"]
        return name

    @property
    def sizes(self) -> list[list[int]]:
        sizes: list[list[int]] = self.event.get("args", {}).get("Input Dims", [])
        return sizes

    @property
    def types(self) -> list[str]:
        types: list[str] = self.event.get("args", {}).get("Input type", [])
        return types

    def inside(self, wanted: Callable[[_Node], bool]) -> _Node | None:
        """The nearest event that this one ran inside of, of the wanted kind."""
        node = self.above
        while node is not None and not wanted(node):
            node = node.above
        return node


@dataclass(frozen=True)
class _Product:
    """A matrix product: what it multiplied, (..., m, k) by (..., k, n) or fused attention, and what that cost."""

    node: _Node
    dtype: str
    flops: int
    operands: tuple[tuple[int, ...], ...] = ()
    result: tuple[int, ...] = ()


def examine(traced: Trace) -> Witness:
    """Read a trace; its operations need their shapes."""
    nodes = list(_nested(traced.events))
    products = _products(nodes)
    flops: Counter[str] = Counter()
    inside = 0
    for product in products.values():
        flops[product.dtype] += product.flops
        inside += product.flops if product.node.inside(_is_graph) else 0
    launched = [event for event in traced.events if event.get("cat") == "kernel"]
    formula, scores = _formula(nodes, products)
    sizes = [int(account["Bytes"]) for account in allocations(traced.events, "cuda" if launched else "cpu")]
    return Witness(
        flops=dict(flops),
        products_seconds=None if launched else math.fsum(node.event["dur"] for node in products) / 1e6,
        attention={**_sdpa(nodes), **formula},
        scores=scores,
        kernels=_top(launched, nodes),
        operations=len(launched) or sum(node.operation and not node.inside(_is_operation) for node in nodes),
        graphs=sum(_is_graph(node) for node in nodes),
        flops_in_graphs=inside,
        ledgers=traced.ledgers,
        largest_bytes=max(sizes, default=0),
        seconds=traced.seconds,
    )


def _is_graph(node: _Node) -> bool:
    return node.name.startswith(_GRAPH)


def _is_operation(node: _Node) -> bool:
    return node.operation


def _nested(events: Sequence[dict[str, Any]]) -> Iterator[_Node]:
    """The spans that ran on the host, each with the one around it, in the order in which they began."""
    spans = [event for event in events if event.get("cat") in ("cpu_op", "user_annotation") and "dur" in event]
    open_spans: dict[Any, list[tuple[float, _Node]]] = defaultdict(list)
    for event in sorted(spans, key=lambda span: (span["ts"], -span["dur"])):
        around = open_spans[event["tid"]]
        while around and around[-1][0] <= event["ts"]:
            around.pop()
        above = around[-1][1] if around else None
        if above is not None:
            above.own_time -= event["dur"]
        node = _Node(event, above, event["dur"])
        around.append((event["ts"] + event["dur"], node))
        yield node


def _products(nodes: Sequence[_Node]) -> dict[_Node, _Product]:
    """The products that were computed, not those that called them: linear calls addmm, and only one is counted."""
    products: dict[_Node, _Product] = {}
    for node in nodes:
        product = _product(node)
        if product is None:
            continue
        caller = node.inside(products.__contains__)
        if caller is not None:
            del products[caller]
        products[node] = product
    return products


def _is_fused(node: _Node) -> bool:
    return node.name.startswith(_SDPA) and any(part in node.name for part in _FUSED)


def _product(node: _Node) -> _Product | None:
    """The product that this operation is; None when it is none, or one without its shapes."""
    if _is_fused(node):
        return _fused_product(node)
    if node.name in _PRODUCTS:
        first, second = _PRODUCTS[node.name]
    elif node.name in _LINEAR:
        first, second = 0, max((at for at in (1, 2) if len(_at(node.sizes, at)) == 2), default=1)
    else:
        return None
    left, right = _at(node.sizes, first), _at(node.sizes, second)
    if not left or not right:
        return None
    columns = 1 if len(right) == 1 else right[-2] if node.name in _LINEAR else right[-1]
    return _Product(
        node,
        dtype=_type(node.types[first]),
        flops=2 * math.prod(left) * columns,
        operands=(left, right),
        result=(*left[:-1], columns),
    )


def _fused_product(node: _Node) -> _Product | None:
    """Two products over queries and keys (B, H, T, D); five of them on the way back. A causal half is not taken off."""
    backward = node.name.endswith("_backward")  # its first argument is the gradient
    queries, keys = _at(node.sizes, int(backward)), _at(node.sizes, 1 + int(backward))
    if not queries or not keys:
        return None
    flops = (10 if backward else 4) * math.prod(queries) * keys[-2]
    return _Product(node, _type(node.types[int(backward)]), flops)


def _at(sizes: Sequence[Sequence[int]], at: int) -> tuple[int, ...]:
    return tuple(sizes[at]) if at < len(sizes) else ()


def _type(name: str) -> str:
    return _TYPES.get(name, name.removeprefix("c10::").lower())


def _sdpa(nodes: Sequence[_Node]) -> dict[str, str]:
    """The algorithms that scaled_dot_product_attention chose."""
    found: dict[str, str] = {}
    for node in nodes:
        if node.name.startswith(_MATH):
            found.setdefault("math", node.name)
        elif _is_fused(node):
            found.setdefault(next(name for part, name in _FUSED.items() if part in node.name), node.name)
    return found


def _formula(
    nodes: Sequence[_Node], products: Mapping[_Node, _Product]
) -> tuple[dict[str, str], tuple[int, int, int] | None]:
    """Attention by its formula outside of SDPA, and the largest score matrix, SDPA's own "math" included.

    Scores are what one product gave, a softmax read and another product took: tensors are told by their sizes. The
    softmax of a compiled graph is in the graph's own code, so that there two batched products in a row must do.
    """
    found: dict[str, str] = {}
    largest: tuple[int, int, int] | None = None
    pending: dict[tuple[int, ...], _Product] = {}
    normalized: set[tuple[int, ...]] = set()
    for node in nodes:
        if node.name in _SOFTMAX and _key(_at(node.sizes, 0)) in pending:
            normalized.add(_key(_at(node.sizes, 0)))
        if node not in products or not products[node].operands:
            continue
        product = products[node]
        for key in map(_key, product.operands):
            before = pending.get(key)
            one_graph = before is not None and _in_one_graph(before, product)
            if before is None or not (key in normalized or one_graph):
                continue
            sizes = before.result
            scores = (math.prod(sizes[:-2]), sizes[-2], sizes[-1])
            largest = max(largest or scores, scores, key=math.prod)
            if not node.inside(lambda above: above.name.startswith(_MATH)):
                between = "softmax" if key in normalized else "compiled code"
                found.setdefault("formula", f"{before.node.name}, {between}, {node.name}")
        normalized.discard(_key(product.result))
        pending[_key(product.result)] = product
    return found, largest


def _key(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """What of a tensor's sizes a view or a transposition of its last two leaves alone."""
    return (math.prod(sizes), *sorted(sizes[-2:]))


def _in_one_graph(before: _Product, product: _Product) -> bool:
    graph = product.node.inside(_is_graph)
    batched = len(before.result) == 3 == len(product.result)
    return batched and graph is not None and graph is before.node.inside(_is_graph)


def _top(launched: Sequence[dict[str, Any]], nodes: Sequence[_Node]) -> tuple[str, ...]:
    """The names with most time: of CUDA's kernels, or of operations without what they called, compiled code as one."""
    spans = [(event["name"], event["dur"]) for event in launched] or [
        ("compiled graph" if _is_graph(node) else node.name, node.own_time)
        for node in nodes
        if node.operation or _is_graph(node)
    ]
    times = Counter(name for name, _ in spans)
    durations: Counter[str] = Counter()
    for name, duration in spans:
        durations[name] += duration
    whole = durations.total()
    return tuple(
        f"{name} x{times[name]} ({spent / whole:.0%})"
        for name, spent in durations.most_common(TOP_KERNELS)
        if spent > 0 and spent >= LEAST_SHARE * whole
    )
