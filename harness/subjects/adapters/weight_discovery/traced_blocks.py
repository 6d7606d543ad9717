"""Sort the matrix products of a traced forward pass by layer, and by their role within the layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.labelled_parameters import LabelledParameters
from harness.subjects.adapters.weight_discovery.layer_numbers import numbered
from harness.subjects.adapters.weight_discovery.tracing import Use


@dataclass
class TracedBlock:
    """The matrix products of one layer, in execution order."""

    attention_in: list[Use] = field(default_factory=list)  # queries, keys and values
    attention_out: list[Use] = field(default_factory=list)
    up: list[Use] = field(default_factory=list)  # of a gated MLP two, or one of twice the width
    down: Use | None = None


def traced_blocks(
    matrices: list[Use], parameters: LabelledParameters, size: Size
) -> tuple[dict[int, TracedBlock], list[Use]]:
    """Return the products by layer, in execution order, and the products with a table (the head)."""
    C, V = size.width, size.vocab_size
    layers = numbered(parameters.module, size)
    tables = [
        use
        for use in matrices
        if max(use.entries.shape) >= V
        and C in use.entries.shape
        and max(use.entries.shape) not in (3 * C, 4 * C)
        and own_name(use, parameters) not in layers
    ]
    inside = [use for use in matrices if use not in tables]
    by_layer: dict[int, list[Use]] = {}
    for use, layer in zip(inside, _layers(inside, parameters, size), strict=True):
        by_layer.setdefault(layer, []).append(use)
    return {layer: _block(uses, size) for layer, uses in by_layer.items()}, tables


def own_name(use: Use, parameters: LabelledParameters) -> str:
    """Return the name of the parameter that is used; of several, the first."""
    return parameters.name_of(int(use.entries.flatten()[0]))


def _layers(uses: list[Use], parameters: LabelledParameters, size: Size) -> list[int]:
    """Return the layer of each product.

    The number in the parameter's name decides. Where there is none, a layer ends with its down projection.
    """
    by_name = numbered(parameters.module, size)
    named = [by_name.get(own_name(use, parameters)) for use in uses]
    if None not in named:
        return [place.layer for place in named if place is not None]
    down = [tuple(use.entries.shape) == (4 * size.width, size.width) for use in uses]
    if sum(down) > size.layers:
        raise LookupError(f"{sum(down)} feed-forward layers in the forward pass, expected {size.layers}")
    return [sum(down[:at]) for at in range(len(uses))]


def _block(uses: list[Use], size: Size) -> TracedBlock:
    """Return one layer's products by role; their shapes decide."""
    C = size.width
    found = TracedBlock()
    found.up, found.down = _mlp(uses, size)
    attention = [use for use in uses if use is not found.down and use not in found.up]
    found.attention_out = [use for use in attention if use.entries.shape[0] < C]  # one for each head
    if not found.attention_out and sum(use.entries.shape[1] for use in attention) > 3 * C:
        found.attention_out = attention[-1:]
    elif not found.attention_out:  # fewer keys and values, or one not used: the output projection has its own input
        found.attention_out = [use for use in attention[-1:] if use.input_storage != attention[0].input_storage]
    found.attention_in = [use for use in attention if use not in found.attention_out]
    return found


def _mlp(uses: list[Use], size: Size) -> tuple[list[Use], Use | None]:
    """Return the first and the second projection of the MLP. Of a gated one the first is two, or twice as wide."""
    C = size.width
    shapes = {use: tuple(use.entries.shape) for use in uses}
    ups = [use for use in uses if shapes[use] == (C, 4 * C)]
    down = next((use for use in reversed(uses) if shapes[use] == (4 * C, C)), None)
    if down is None and not ups:  # another width than GPT-2's
        down = next((use for use in reversed(uses) if _is_second(shapes[use], list(shapes.values()), size)), None)
    if down is not None:
        F = shapes[down][0]
        wide = [use for use in uses[: uses.index(down)] if shapes[use] in ((C, F), (C, 2 * F))] or ups
        ups = [use for use in wide if use.input_storage == wide[-1].input_storage][-1 if F == C else -2 :]
    return ups, down


def _is_second(shape: tuple[int, ...], layer: list[tuple[int, ...]], size: Size) -> bool:
    """Return True if a product of this shape can be the second projection of an MLP in a layer of these products."""
    C, F = size.width, shape[0]
    if shape[1] != C or F == C:
        return shape == (C, C) and layer in ([(C, 3 * C)] + 3 * [(C, C)], 6 * [(C, C)])
    return (C, F) in layer or (C, 2 * F) in layer
