"""The matrix products of a trace: their dtype, their FLOPs, and the sizes of their operands."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from harness.bench.witness.operations import Operation

# A trace names the types as C++ does; this maps them to torch's names.
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
_LINEAR = (
    *("aten::linear", "aten::mkldnn_linear", "mkldnn::_linear_pointwise", "mkl::_mkl_linear"),
    _INT8 := "aten::_weight_int8pack_mm",
)
# (..., k) by a weight of (n, k / 2) bytes, two numbers in each.
_INT4 = "aten::_weight_int4pack_mm_for_cpu"

SDPA = "aten::_scaled_dot_product_"
# The fused algorithms of scaled_dot_product_attention, by a part of their operator's name.
FUSED_ATTENTION = {"_flash_attention": "flash", "_efficient_attention": "efficient", "_cudnn_attention": "cudnn"}


@dataclass(frozen=True)
class Product:
    """A matrix product. `operands` and `result` are the sizes of its matrices; fused attention has none."""

    operation: Operation
    dtype: str
    flops: int
    operands: tuple[tuple[int, ...], ...] = ()
    result: tuple[int, ...] = ()


def matrix_products(operations: Sequence[Operation]) -> dict[Operation, Product]:
    """Return the products by the operation that computed them.

    An operation that only calls another one is left out: linear calls addmm, and one of the two is counted.
    """
    products: dict[Operation, Product] = {}
    for operation in operations:
        product = _product(operation)
        if product is None:
            continue
        caller = operation.nearest_caller(products.__contains__)
        if caller is not None:
            del products[caller]
        products[operation] = product
    return products


def is_fused_attention(operation: Operation) -> bool:
    """Return True for a fused kernel of scaled_dot_product_attention."""
    return operation.name.startswith(SDPA) and any(part in operation.name for part in FUSED_ATTENTION)


def _product(operation: Operation) -> Product | None:
    """Return the product that this operation is, or None if it is none or the trace lacks its shapes."""
    if is_fused_attention(operation):
        return _fused_product(operation)
    linear = operation.name in _LINEAR or operation.name == _INT4
    if operation.name in _PRODUCTS:
        first, second = _PRODUCTS[operation.name]
    elif linear:
        first, second = 0, max((at for at in (1, 2) if len(operation.sizes_of(at)) == 2), default=1)
    else:
        return None
    left, right = operation.sizes_of(first), operation.sizes_of(second)
    if not left or not right:
        return None
    columns = 1 if len(right) == 1 else right[-2] if linear else right[-1]
    dtype = "int4" if operation.name == _INT4 else _dtype(operation.types[second if operation.name == _INT8 else first])
    return Product(
        operation,
        dtype=dtype,
        flops=2 * math.prod(left) * columns,
        operands=(left, right),
        result=(*left[:-1], columns),
    )


def _fused_product(operation: Operation) -> Product | None:
    """Return two products over queries and keys (B, H, T, D), or five of them in the backward pass.

    The half that a causal mask leaves out is counted.
    """
    backward = operation.name.endswith("_backward")  # its first argument is the gradient
    queries, keys = operation.sizes_of(int(backward)), operation.sizes_of(1 + int(backward))
    if not queries or not keys:
        return None
    flops = (10 if backward else 4) * math.prod(queries) * keys[-2]
    return Product(operation, _dtype(operation.types[int(backward)]), flops)


def _dtype(name: str) -> str:
    return _TYPES.get(name, name.removeprefix("c10::").lower())
