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
    up: Use | None = None
    down: Use | None = None


def traced_blocks(
    matrices: list[Use], parameters: LabelledParameters, size: Size
) -> tuple[dict[int, TracedBlock], list[Use]]:
    """Return the products by layer, in execution order, and the products with a table (the head)."""
    C, V = size.width, size.vocab_size
    tables = [
        use
        for use in matrices
        if max(use.entries.shape) >= V and C in use.entries.shape and max(use.entries.shape) not in (3 * C, 4 * C)
    ]
    inside = [use for use in matrices if use not in tables]
    by_layer: dict[int, list[Use]] = {}
    for use, layer in zip(inside, _layers(inside, parameters, size), strict=True):
        by_layer.setdefault(layer, []).append(use)
    return {layer: _block(uses, size.width) for layer, uses in by_layer.items()}, tables


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


def _block(uses: list[Use], C: int) -> TracedBlock:
    """Return one layer's products by role; their shapes decide."""
    found = TracedBlock()
    attention = []
    for use in uses:
        if tuple(use.entries.shape) == (C, 4 * C):
            found.up = use
        elif tuple(use.entries.shape) == (4 * C, C):
            found.down = use
        else:
            attention.append(use)
    found.attention_out = [use for use in attention if use.entries.shape[0] < C]  # one for each head
    if not found.attention_out and sum(use.entries.shape[1] for use in attention) > 3 * C:
        found.attention_out = attention[-1:]
    elif not found.attention_out:  # one of the four is not used: the output projection has an input of its own
        found.attention_out = [use for use in attention[-1:] if use.input_storage != attention[0].input_storage]
    found.attention_in = [use for use in attention if use not in found.attention_out]
    return found
