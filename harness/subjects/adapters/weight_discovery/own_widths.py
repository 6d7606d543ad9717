"""The widths of a model that are not GPT-2's: of its MLP, and of its keys and values."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.layer_numbers import numbered
from harness.subjects.adapters.weight_discovery.traced_blocks import TracedBlock
from harness.subjects.adapters.weight_discovery.tracing import Use


def own_widths(blocks: dict[int, TracedBlock], parameters: LabelledParameters, uses: list[Use], size: Size) -> Size:
    """Return `size` with the widths that the products of all layers have in common.

    A matrix that no product uses, in a layer that is used, leaves it open which widths the model has: a bug, such as
    keys that are queries, looks like keys of fewer heads. They are taken to be GPT-2's then.
    """
    layers = numbered(parameters.module, size)
    products = [use for use in uses if use.kind in ("matrix", "table")]
    used = {parameters.name_of(int(entry)) for use in products for entry in use.entries.flatten()[[0, -1]]}
    matrices = {
        name
        for name, shape in parameters.shapes.items()
        if (len([n for n in shape if n != 1]) > 1 or math.prod(shape) >= size.width**2)  # a matrix may be stored flat
        and (name not in layers or layers[name].layer in blocks)
    }
    found = {_widths(block, size) for block in blocks.values()}
    if len(found) != 1 or matrices - used:
        return size
    hidden, gated, heads = found.pop()
    return replace(
        size,
        hidden=0 if hidden == 4 * size.width else hidden,
        gated=gated,
        key_value_heads=0 if heads == size.heads else heads,
    )


def _widths(block: TracedBlock, size: Size) -> tuple[int, bool, int]:
    """Return the width of a layer's MLP, whether it is gated, and the number of heads of its keys and values."""
    hidden, gated = 0, False
    if block.down is not None and block.up:
        hidden = block.down.entries.shape[0]
        gated = sum(use.entries.shape[1] for use in block.up) == 2 * hidden
    columns = sum(use.entries.shape[1] for use in block.attention_in) - size.width
    heads, rest = divmod(columns, 2 * size.head_width)
    fits = block.attention_out and not rest and heads > 0 and size.heads % heads == 0
    return hidden, gated, heads if fits else size.heads
