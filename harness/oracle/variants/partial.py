"""Partial variants: a variant that applies to one head, to some positions or to some rows of the batch only."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from harness.oracle.formula import At, operation_of
from harness.oracle.variants.variant import Variant

# The operations whose values have an axis of heads: (B, H, T, ...).
OPERATIONS_WITH_HEADS = ("attn.split", "attn.scores", "attn.scale", "attn.mask", "attn.softmax", "attn.mix")
FIRST_POSITIONS = (1, 4, 8, 12, 16, 20, 24, 28)  # a partial variant applies from one of these positions on


def in_parts(variant: Variant, *, heads: int) -> Iterator[Variant]:
    """Yield the variant restricted to one head, to position 0, from a position on, and to all rows but the first.

    Yield nothing for an operation whose values have no axis of positions.
    """
    operation = variant.operation
    if operation in OPERATIONS_WITH_HEADS:
        for head in range(heads):
            yield _restricted(variant, 1, slice(head, head + 1), f"in head {head} only")
        axis = 2
    elif operation.startswith(("embedding", "ln_", "attn", "mlp", "residual")):
        axis = 1
    else:
        return
    yield _restricted(variant, axis, slice(0, 1), "at position 0 only")
    for position in FIRST_POSITIONS:
        yield _restricted(variant, axis, slice(position, None), f"from position {position} on")
    yield _restricted(variant, 0, slice(1, None), "in all rows of the batch but the first")


def _restricted(variant: Variant, axis: int, part: slice, says: str) -> Variant:
    """Return the variant restricted to `part` of one axis; the other values are GPT-2's."""
    gpt2 = operation_of(variant.operation)

    def function(at: At, *inputs: Any) -> Any:
        right, wrong = gpt2(at, *inputs), variant.function(at, *inputs)
        if isinstance(right, tuple):
            return tuple(_with_part(a, b, axis, part) for a, b in zip(right, wrong, strict=True))
        return _with_part(right, wrong, axis, part)

    return Variant(variant.fault, variant.operation, f"{says}: {variant.says}", function, variant.where)


def _with_part(right: Tensor, wrong: Tensor, axis: int, part: slice) -> Tensor:
    """Return `right` with the values of `wrong` in `part` of the axis."""
    if right.ndim == 2 and axis:
        axis -= 1  # the position embeddings have no axis of rows: (T, C)
    mixed = right.clone()
    index = tuple(part if number == axis else slice(None) for number in range(right.ndim))
    mixed[index] = wrong.expand_as(right)[index]
    return mixed
