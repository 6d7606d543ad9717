"""The algorithms of attention in a trace, and the largest score matrix that they wrote."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from harness.bench.witness.operations import Operation
from harness.bench.witness.products import FUSED_ATTENTION, SDPA, Product, is_fused_attention

_MATH = f"{SDPA}attention_math"
_SOFTMAX = ("aten::_softmax", "aten::exp", "aten::exp_")


def sdpa_algorithms(operations: Sequence[Operation]) -> dict[str, str]:
    """Return the algorithms that scaled_dot_product_attention chose, each with the operation that shows it."""
    found: dict[str, str] = {}
    for operation in operations:
        if operation.name.startswith(_MATH):
            found.setdefault("math", operation.name)
        elif is_fused_attention(operation):
            name = next(name for part, name in FUSED_ATTENTION.items() if part in operation.name)
            found.setdefault(name, operation.name)
    return found


def attention_by_formula(
    operations: Sequence[Operation], products: Mapping[Operation, Product]
) -> tuple[dict[str, str], tuple[int, int, int] | None]:
    """Return attention by its formula outside of SDPA, and the sizes of the largest score matrix.

    The sizes are (heads of all sequences, queries, keys); SDPA's own "math" counts too. Scores are what one product
    gave, a softmax read, and another product took. Tensors are matched by their sizes, because a trace does not
    identify them. In a compiled graph the softmax is part of the graph's own code, so there two batched products in a
    row are enough.
    """
    found: dict[str, str] = {}
    largest: tuple[int, int, int] | None = None
    results: dict[tuple[int, ...], Product] = {}  # the last product of each size
    normalized: set[tuple[int, ...]] = set()
    for operation in operations:
        if operation.name in _SOFTMAX and _key(operation.sizes_of(0)) in results:
            normalized.add(_key(operation.sizes_of(0)))
        if operation not in products or not products[operation].operands:
            continue
        product = products[operation]
        for key in map(_key, product.operands):
            before = results.get(key)
            one_graph = before is not None and _in_one_graph(before, product)
            if before is None or not (key in normalized or one_graph):
                continue
            sizes = before.result
            scores = (math.prod(sizes[:-2]), sizes[-2], sizes[-1])
            largest = max(largest or scores, scores, key=math.prod)
            if not operation.nearest_caller(lambda caller: caller.name.startswith(_MATH)):
                between = "softmax" if key in normalized else "compiled code"
                found.setdefault("formula", f"{before.operation.name}, {between}, {operation.name}")
        normalized.discard(_key(product.result))
        results[_key(product.result)] = product
    return found, largest


def _key(sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Return what a view, or a transposition of the last two dimensions, leaves unchanged of a tensor's sizes."""
    return (math.prod(sizes), *sorted(sizes[-2:]))


def _in_one_graph(before: Product, product: Product) -> bool:
    """Return True if both are batched products that one compiled graph issued."""
    graph = product.operation.graph
    batched = len(before.result) == 3 == len(product.result)
    return batched and graph is not None and graph is before.operation.graph
