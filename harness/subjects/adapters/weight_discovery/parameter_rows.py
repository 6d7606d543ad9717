"""The row of a weight map for one parameter: which published tensor it is, from its parsed name, shape and layer."""

from __future__ import annotations

import itertools
import re

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.names import PUBLISHED_ORDER, ParsedName
from harness.subjects.weight_map import Layout, MappedWeight, published_shapes

# Rows that a table of positions may have beyond the context, and any table too few: OPT's has two more.
MOST_ROWS_BESIDE = 8


def row_by_name(
    name: str,
    parsed: ParsedName,
    shape: tuple[int, ...],
    size: Size,
    shapes: dict[str, tuple[int, ...]],
    module: nn.Module,
) -> tuple[MappedWeight | None, bool]:
    """Return the row of an own parameter, and whether its name and shape settle its orientation and order.

    `shapes` are the published shapes. The row is None where the shape does not fit the published tensor.
    """
    component, part, published = parsed.component, parsed.part, parsed.published
    beyond = {"lm_head.weight": shapes["transformer.wte.weight"], "lm_head.bias": (size.vocab_size,)}
    expected = beyond.get(published, shapes.get(published))
    if expected is None:
        return None, False
    if part is not None:
        expected = (*expected[:-1], part[1] - part[0])
    if len(expected) == 2 and component.endswith(("wte", "wpe", "lm_head")):
        return table_row(published, name, shape, expected), True
    if len(expected) == 1:
        return _vector_row(name, parsed, shape, expected, size, module)
    linear = is_out_in(name, module)
    if len(shape) == 2:
        transposed = linear or (shape != expected and shape == expected[::-1])
        if shape != (expected[::-1] if transposed else expected):
            return None, False
        settled = linear or expected[0] != expected[1] or type(_owner(name, module)).__name__ == "Conv1D"
        if component.endswith("c_attn"):
            settled = settled and order_is_known(name, part, module)
        return MappedWeight(published, name, transposed, part, evidence="name"), settled
    found = layouts(shape, expected, size)
    if linear:  # a convolution's: (out, in, 1)
        found = [layout for layout in found if layout.axes == (1, 0)]
    settled = len(found) == 1 and (part is not None or not component.endswith("c_attn"))
    return (
        (MappedWeight(published, name, False, part, layout=found[0], evidence="name"), settled)
        if found
        else (None, False)
    )


def _vector_row(
    name: str, parsed: ParsedName, shape: tuple[int, ...], expected: tuple[int, ...], size: Size, module: nn.Module
) -> tuple[MappedWeight | None, bool]:
    """Return the row of a bias or a gain, and whether it is settled; see `row_by_name`."""
    part, published = parsed.part, parsed.published
    if shape == expected:
        settled = parsed.component[-6:] != "c_attn" or order_is_known(name, part, module)
        return MappedWeight(published, name, False, part, evidence="name"), settled
    found = shape and len(shape) > 1 and layouts(shape, expected, size)
    return (
        (MappedWeight(published, name, False, part, layout=found[0], evidence="name"), True) if found else (None, False)
    )


def row_of_missing(
    missing: MappedWeight, name: str, shape: tuple[int, ...], size: Size, module: nn.Module
) -> MappedWeight | None:
    """Return the row that maps an own parameter to a missing published one; None where its shape does not fit."""
    words = missing.published.split(".")
    layer = int(words[2]) if words[1] == "h" else None
    component = ".".join(words[1 if layer is None else 3 : -1])
    parsed = ParsedName(component, words[-1], layer, missing.part)
    return row_by_name(name, parsed, shape, size, published_shapes(size), module)[0]


def table_row(published: str, name: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> MappedWeight | None:
    """Return the row of an embedding or a head; None where its shape does not fit.

    The own table may have axes of length one, and the width first, as one that is multiplied with one-hot ids. It may
    have more rows than the vocabulary has tokens. Of a table of positions, or one that is too short, a few rows may be
    beside the published ones: the rows that both have are mapped.
    """
    core = tuple(n for n in shape if n != 1)
    if shape == expected:
        return MappedWeight(published, name, evidence="name")
    if core == expected:
        return MappedWeight(published, name, layout=Layout((0, 1), 1, view=expected), evidence="name")
    if core == expected[::-1]:
        layout = None if core == shape else Layout((1, 0), 1, core)
        return MappedWeight(published, name, transposed=layout is None, layout=layout, evidence="name")
    if len(core) != 2 or expected[1] not in core:
        return None
    axes = (0, 1) if core[1] == expected[1] else (1, 0)
    own, wanted = core[axes[0]], expected[0]
    if abs(own - wanted) > MOST_ROWS_BESIDE and (own < wanted or "wpe" in published):
        return None
    if own < wanted:
        return MappedWeight(published, name, part=(0, own), axis=0, layout=Layout(axes, 1, core), evidence="name")
    index = tuple((0, wanted) if axis == axes[0] else None for axis in range(2))
    return MappedWeight(published, name, layout=Layout(axes, 1, core, index), evidence="name")


def layouts(shape: tuple[int, ...], expected: tuple[int, ...], size: Size) -> list[Layout]:
    """Return the layouts in which an own tensor with more axes, mostly one for the heads, contains a published one."""
    core = tuple(n for n in shape if n != 1)
    factors = {size.width: [(size.width,), (size.heads, size.head_width)]}
    factors[3 * size.width] = [(3 * size.width,), (3, size.width), (3, size.heads, size.head_width)]
    if size.key_value_width < size.width:
        factors[size.key_value_width] = [(size.key_value_width,), (size.key_value_heads, size.head_width)]
    forms = [factors.get(n, [(n,)]) for n in expected]
    found = []
    for split in itertools.product(*forms):
        flat = tuple(itertools.chain(*split))
        if sorted(flat) != sorted(core):
            continue
        for axes in itertools.permutations(range(len(core))):
            if tuple(core[axis] for axis in axes) == flat:
                rows = None if len(expected) == 1 else len(split[0])
                found.append(Layout(axes, rows, None if core == shape else core))
    return found


def is_out_in(name: str, module: nn.Module) -> bool:
    """Return True if a matrix belongs to one of torch's own layers, which store (out, in)."""
    return isinstance(_owner(name, module), nn.Linear | nn.MultiheadAttention | nn.Conv1d | nn.Conv2d)


def order_is_known(name: str, part: tuple[int, int] | None, module: nn.Module) -> bool:
    """Return True if the name gives the order of queries, keys and values, or if the parameter is only one of them."""
    return (
        part is not None
        or isinstance(_owner(name, module), nn.MultiheadAttention)
        or re.search(rf"(^|\.){PUBLISHED_ORDER}(\.|_|$)", name) is not None
    )


def _owner(name: str, module: nn.Module) -> nn.Module:
    """Return the submodule that a parameter belongs to."""
    return module.get_submodule(name.rpartition(".")[0])
