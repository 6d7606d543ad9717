"""Transfer a weight map from one size to another: names count the layers, and every length is a dimension of GPT-2."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.name_map import missing_in_gpt2
from harness.subjects.adapters.weight_discovery.parameter_rows import table_row
from harness.subjects.weight_map import Layout, MappedWeight, WeightMap, family, published_shapes


@dataclass(frozen=True)
class _Sample:
    """A row, its layer, and its head where each head has its own parameter."""

    row: MappedWeight
    layer: int
    head: int


class _Key(NamedTuple):
    """The properties that rows of one kind have in common, over layers and heads."""

    family: str
    per_layer: bool
    kind: tuple[int, int] | None
    per_head: bool


def at_size(found: WeightMap, small: Size, size: Size, module: nn.Module) -> WeightMap:
    """Return the map `found`, valid at size `small`, for `module` at `size`.

    Parameters whose names do not continue those of the small size are unmapped.
    """
    own = dict(module.named_parameters())
    if found.size is not None and found.size != small:
        small, size = found.size, _with_own_widths(found, found.size, size, own)
    rows = tuple(row for row in _rows(found, small, size, own))
    mapped = {row.own for row in rows}
    unmapped_parameters = tuple(name for name in own if name not in mapped)
    return WeightMap(rows, missing_in_gpt2(rows, size), unmapped_parameters, found.notes, size)


def _with_own_widths(found: WeightMap, small: Size, size: Size, own: dict[str, nn.Parameter]) -> Size:
    """Return `size` with the widths that are not GPT-2's: those of the first layer's parameters."""

    def columns(family_name: str) -> int:
        """Return how many columns, C numbers each, the first layer's parameters of a family have."""
        layers: dict[str, set[str]] = {}
        for row in found.rows:
            if family(row.published) == family_name:
                layers.setdefault(row.own, set()).add(row.published)
        first = [name for name, of in layers.items() if any(".h.0." in published for published in of)]
        stacked = any(len(layers[name]) > 1 for name in first)
        numbers = sum(own[name].numel() for name in first if name in own)
        return numbers // size.width // (size.layers if stacked else 1)

    heads = (columns("attn.c_attn.weight") - size.width) // (2 * size.head_width)
    return replace(
        size,
        hidden=columns("mlp.c_proj.weight") if small.hidden else 0,
        gated=small.gated,
        key_value_heads=heads if small.key_value_heads and heads > 0 else 0,
    )


def _rows(found: WeightMap, small: Size, size: Size, own: dict[str, nn.Parameter]) -> Iterator[MappedWeight]:
    groups: dict[_Key, list[_Sample]] = {}
    for row in found.rows:
        layer = _layer(row.published)
        kind, head = _place(row, small)
        key = _Key(family(row.published), layer is not None, kind, head is not None)
        groups.setdefault(key, []).append(_Sample(row, layer or 0, head or 0))
    numbering = _numbering([sample for key, samples in groups.items() if key.per_layer for sample in samples])
    for key, samples in groups.items():
        for layer in range(size.layers if key.per_layer else 1):
            for head in range(size.heads if key.per_head else 1):
                found_row = _row(samples, layer, head, small, size)
                if found_row is not None and not key.per_layer:
                    renumbered = replace(found_row, own=_renumbered(found_row.own, numbering, small, size))
                    found_row = _outside_the_layers(renumbered, size, own)
                if found_row is not None and found_row.own in own:
                    yield found_row


def _outside_the_layers(row: MappedWeight, size: Size, own: dict[str, nn.Parameter]) -> MappedWeight | None:
    """Return the row of an embedding or the head at `size`: a padded one has another number of rows there."""
    if row.own not in own or not row.published.endswith(("wte.weight", "wpe.weight", "lm_head.weight")):
        return row
    expected = published_shapes(size)[row.published.replace("lm_head", "transformer.wte")]
    again = table_row(row.published, row.own, tuple(own[row.own].shape), expected)
    return None if again is None else replace(again, evidence=row.evidence)


def _row(samples: list[_Sample], layer: int, head: int, small: Size, size: Size) -> MappedWeight | None:
    """Return the row of that layer and head at `size`; None where names or places do not count evenly."""
    first = samples[0].row
    words = [re.split(r"(\d+)", sample.row.own) for sample in samples]
    if len({tuple(w[::2]) for w in words}) != 1:
        return None
    numbers: list[str] = []
    for at in range(1, len(words[0]), 2):
        number = _extrapolated(samples, [int(w[at]) for w in words], layer, head)
        if number is None:
            return None
        numbers.append(str(number))
    own = "".join(x for pair in zip(words[0][::2], [*numbers, ""], strict=True) for x in pair)
    published = re.sub(r"\.h\.\d+\.", f".h.{layer}.", first.published)
    stacked = len({sample.row.own for sample in samples}) == 1 and len({sample.layer for sample in samples}) > 1
    scale = _scaled(small, size, stacked)
    part = first.part
    if part is not None:
        kind, own_head = _place(first, small)
        if own_head is None:
            part = (scale(part[0]), scale(part[1]))
        else:
            start = size.third_edges[kind[0] if kind else 0] + head * size.head_width
            part = (start, start + size.head_width)
    layout = first.layout
    if layout is not None:
        index = tuple(
            _entry([s.row.layout.index[at] for s in samples if s.row.layout is not None], samples, layer, head, scale)
            for at in range(len(layout.index))
        )
        if any(isinstance(a, int) and b is None for a, b in zip(layout.index, index, strict=True)):
            return None  # the layers, or heads, are in no order that continues at another size
        view = None if layout.view is None else tuple(scale(n) for n in layout.view)
        layout = Layout(layout.axes, layout.rows, view, index)
    return replace(first, published=published, own=own, part=part, layout=layout)


def _entry(
    entries: list[int | tuple[int, int] | None],
    samples: list[_Sample],
    layer: int,
    head: int,
    scale: Callable[[int], int],
) -> int | tuple[int, int] | None:
    first = entries[0]
    if isinstance(first, int):
        return _extrapolated(samples, [e for e in entries if isinstance(e, int)], layer, head)
    return None if first is None else (scale(first[0]), scale(first[1]))


def _extrapolated(samples: list[_Sample], numbers: list[int], layer: int, head: int) -> int | None:
    """Return start + layer * step + head * step with the steps of the samples; None where those are not even."""
    start = next((n for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (0, 0)), numbers[0])
    by_layer = next((n - start for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (1, 0)), 0)
    by_head = next((n - start for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (0, 1)), 0)
    fits = all(n == start + s.layer * by_layer + s.head * by_head for s, n in zip(samples, numbers, strict=True))
    return start + layer * by_layer + head * by_head if fits else None


def _numbering(samples: list[_Sample]) -> dict[str, tuple[int, int]]:
    """Return the first layer's number and the step between layers, by the text before the number in the names."""
    found: dict[str, dict[int, int]] = {}
    for sample in samples:
        match = re.search(r"\d+", sample.row.own)
        if match is not None:
            at = found.setdefault(sample.row.own[: match.start()], {})
            at[sample.layer] = min(int(match[0]), at.get(sample.layer, int(match[0])))
    return {before: (at[0], at[1] - at[0]) for before, at in found.items() if {0, 1} <= set(at) and at[1] > at[0]}


def _renumbered(name: str, numbering: dict[str, tuple[int, int]], small: Size, size: Size) -> str:
    """Return the name at another depth: the parameter may follow the layers in one Sequential or ParameterList."""
    match = re.search(r"\d+", name)
    if match is None or name[: match.start()] not in numbering:
        return name
    start, step = numbering[name[: match.start()]]
    number = int(match[0])
    if number >= start + step * small.layers:
        number += step * (size.layers - small.layers)
    return f"{name[: match.start()]}{number}{name[match.end() :]}"


def _scaled(small: Size, size: Size, stacked: bool) -> Callable[[int], int]:
    """Return a function from a length at the small size, where all dimensions differ, to that dimension at `size`."""

    def lengths(of: Size) -> list[int]:
        multiples = [m * of.width for m in (1, 2, 3, 4)]
        widths = [of.hidden_width, 2 * of.hidden_width, of.key_value_width, 2 * of.key_value_width, *of.third_edges]
        heads = [of.heads, of.head_width, of.key_value_heads or of.heads]
        return [of.vocab_size, of.context, *multiples, *heads, *widths, *([of.layers] if stacked else [])]

    table = dict(zip(lengths(small), lengths(size), strict=True))
    return lambda n: table.get(n, n)


def _layer(published: str) -> int | None:
    match = re.search(r"\.h\.(\d+)\.", published)
    return int(match[1]) if match else None


def _place(row: MappedWeight, size: Size) -> tuple[tuple[int, int] | None, int | None]:
    """Return between which edges of the published tensor's parts a row lies, and its head if it belongs to only one.

    The edges of the fused projection are numbered; of another tensor they are multiples of the width.
    """
    if row.part is None:
        return None, None
    start, stop = row.part
    edges = size.third_edges if ".c_attn." in row.published else tuple(range(0, 5 * size.width, size.width))
    at = max(number for number, edge in enumerate(edges) if edge <= start)
    if stop - start == size.head_width and (start, stop) not in itertools.pairwise(edges):
        return (at, at), (start - edges[at]) // size.head_width
    return (at, max(number for number, edge in enumerate(edges) if edge <= stop)), None
