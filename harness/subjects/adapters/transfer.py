"""A weight map found at one size, said again at another: names count layers on, and every length is a dimension's."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_names import absent, table_row
from harness.subjects.weight_map import Layout, MappedWeight, WeightMap, family, published_shapes


@dataclass(frozen=True)
class _Sample:
    """A row, and the place that it has in the model: its layer, and its head where each has a parameter of its own."""

    row: MappedWeight
    layer: int
    head: int


class _Key(NamedTuple):
    """What is alike in the rows of one kind, over layers and heads."""

    family: str
    per_layer: bool
    kind: tuple[int, int] | None
    per_head: bool


def at_size(found: WeightMap, small: Size, size: Size, module: nn.Module) -> WeightMap:
    """The rows of `found`, which holds at size `small`, for `module` at `size`. Names that do not go on are strange."""
    own = dict(module.named_parameters())
    rows = tuple(row for row in _rows(found, small, size, own))
    held = {row.own for row in rows}
    unmapped_parameters = tuple(name for name in own if name not in held)
    return WeightMap(rows, absent(rows, size), unmapped_parameters, found.notes)


def _rows(found: WeightMap, small: Size, size: Size, own: dict[str, nn.Parameter]) -> Iterator[MappedWeight]:
    groups: dict[_Key, list[_Sample]] = {}
    for row in found.rows:
        layer = _layer(row.published)
        kind, head = _place(row, small)
        key = _Key(family(row.published), layer is not None, kind, head is not None)
        groups.setdefault(key, []).append(_Sample(row, layer or 0, head or 0))
    counted = _counted([sample for key, samples in groups.items() if key.per_layer for sample in samples])
    for key, samples in groups.items():
        for layer in range(size.layers if key.per_layer else 1):
            for head in range(size.heads if key.per_head else 1):
                found_row = _row(samples, layer, head, small, size)
                if found_row is not None and not key.per_layer:
                    moved = replace(found_row, own=_moved_on(found_row.own, counted, small, size))
                    found_row = _outside_the_layers(moved, size, own)
                if found_row is not None and found_row.own in own:
                    yield found_row


def _outside_the_layers(row: MappedWeight, size: Size, own: dict[str, nn.Parameter]) -> MappedWeight | None:
    """An embedding is read anew: it may be padded, by another number of rows."""
    if row.own not in own or "ln_f" in row.published:
        return row
    wanted = published_shapes(size)[row.published.replace("lm_head", "transformer.wte")]
    again = table_row(row.published, row.own, tuple(own[row.own].shape), wanted)
    return None if again is None else replace(again, how=row.how)


def _row(samples: list[_Sample], layer: int, head: int, small: Size, size: Size) -> MappedWeight | None:
    """The row of that layer and head at `size`; None where the names do not count on evenly."""
    first = samples[0].row
    words = [re.split(r"(\d+)", sample.row.own) for sample in samples]
    if len({tuple(w[::2]) for w in words}) != 1:
        return None
    numbers: list[str] = []
    for at in range(1, len(words[0]), 2):
        number = _extended(samples, [int(w[at]) for w in words], layer, head)
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
            start = (kind[0] if kind else 0) * size.width + head * size.head_width
            part = (start, start + size.head_width)
    layout = first.layout
    if layout is not None:
        index = tuple(
            _entry([s.row.layout.index[at] for s in samples if s.row.layout is not None], samples, layer, head, scale)
            for at in range(len(layout.index))
        )
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
        return _extended(samples, [e for e in entries if isinstance(e, int)], layer, head)
    return None if first is None else (scale(first[0]), scale(first[1]))


def _extended(samples: list[_Sample], numbers: list[int], layer: int, head: int) -> int | None:
    """start + layer * step + head * step, read off the samples; None where they are not so."""
    start = next((n for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (0, 0)), numbers[0])
    by_layer = next((n - start for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (1, 0)), 0)
    by_head = next((n - start for s, n in zip(samples, numbers, strict=True) if (s.layer, s.head) == (0, 1)), 0)
    fits = all(n == start + s.layer * by_layer + s.head * by_head for s, n in zip(samples, numbers, strict=True))
    return start + layer * by_layer + head * by_head if fits else None


def _counted(samples: list[_Sample]) -> dict[str, tuple[int, int]]:
    """By what stands before a name's first number: where the layers begin to be counted there, and by how much each."""
    found: dict[str, dict[int, int]] = {}
    for sample in samples:
        match = re.search(r"\d+", sample.row.own)
        if match is not None:
            at = found.setdefault(sample.row.own[: match.start()], {})
            at[sample.layer] = min(int(match[0]), at.get(sample.layer, int(match[0])))
    return {before: (at[0], at[1] - at[0]) for before, at in found.items() if {0, 1} <= set(at) and at[1] > at[0]}


def _moved_on(name: str, counted: dict[str, tuple[int, int]], small: Size, size: Size) -> str:
    """The name of what stands behind the layers in one Sequential or ParameterList with them, at another depth."""
    match = re.search(r"\d+", name)
    if match is None or name[: match.start()] not in counted:
        return name
    start, step = counted[name[: match.start()]]
    number = int(match[0])
    if number >= start + step * small.layers:
        number += step * (size.layers - small.layers)
    return f"{name[: match.start()]}{number}{name[match.end() :]}"


def _scaled(small: Size, size: Size, stacked: bool) -> Callable[[int], int]:
    """The function from a length at the small size, where every dimension is another, to the same at `size`."""

    def lengths(of: Size) -> list[int]:
        multiples = [m * of.width for m in (1, 2, 3, 4)]
        return [of.vocab_size, of.context, *multiples, of.heads, of.head_width, *([of.layers] if stacked else [])]

    table = dict(zip(lengths(small), lengths(size), strict=True))
    return lambda n: table.get(n, n)


def _layer(published: str) -> int | None:
    match = re.search(r"\.h\.(\d+)\.", published)
    return int(match[1]) if match else None


def _place(row: MappedWeight, size: Size) -> tuple[tuple[int, int] | None, int | None]:
    """Which part of the published tensor, in widths, and the head where it is one head's."""
    if row.part is None:
        return None, None
    start, stop = row.part
    if stop - start == size.head_width:
        return (start // size.width, start // size.width), start % size.width // size.head_width
    return (start // size.width, stop // size.width), None
