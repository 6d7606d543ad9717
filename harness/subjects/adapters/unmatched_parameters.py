"""The parameters that neither a name nor a use explains: by the other layers, by their weight, by what is left over."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters import weight_names
from harness.subjects.weight_map import MappedWeight, published_shapes

Rows = tuple[MappedWeight, ...]


@dataclass(frozen=True)
class Numbered:
    """Where an own parameter stands: its layer, and its name without that number."""

    layer: int
    without: str


def numbered(module: nn.Module, size: Size) -> dict[str, Numbered]:
    """Own parameters whose name has the number of a layer in it: one that takes as many values as there are layers."""
    alike: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        alike.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    found = {}
    for group in alike.values():
        words = {name: re.split(r"(\d+)", name) for name in group}
        for at in range(1, len(words[group[0]]), 2):
            values = sorted({int(word[at]) for word in words.values()})
            if len(values) == size.layers > 1:
                for name, word in words.items():
                    without = "".join([*word[:at], "#", *word[at + 1 :]])
                    found[name] = Numbered(values.index(int(word[at])), without)
                break
    return found


def by_analogy(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Parameters of one layer, as the parameters of the same name in another layer."""
    places = numbered(module, size)
    alike: dict[str, list[MappedWeight]] = {}
    for row in rows:
        place = places.get(row.own)
        if place is not None and f".h.{place.layer}." in row.published:
            alike.setdefault(place.without, []).append(replace(row, published=_in_layer(row.published, place.layer)))
    for name, _ in _left(rows, module):
        place = places.get(name)
        if place is None:
            continue
        for row in dict.fromkeys(replace(row, own=name, how="analogy") for row in alike.get(place.without, ())):
            found = replace(row, published=row.published.replace(".h.#.", f".h.{place.layer}."))
            if _is_missing(found, rows, size):
                yield found


def _in_layer(published: str, layer: int) -> str:
    return published.replace(f".h.{layer}.", ".h.#.")


def with_their_weights(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Biases that nothing uses: where their weight went."""
    weights = {}
    for row in rows:
        stem, leaf = weight_names.stem_and_leaf(row.own)
        if leaf == "weight" and row.published.endswith(".weight") and _is_plain(row):
            weights[stem] = row
    shapes = published_shapes(size)
    for name, shape in _left(rows, module):
        stem, leaf = weight_names.stem_and_leaf(name)
        weight = weights.get(stem)
        if leaf != "bias" or weight is None:
            continue
        published = weight.published.removesuffix("weight") + "bias"
        found = MappedWeight(published, name, part=weight.part, how="analogy")
        if published in shapes and shape == _shape(found, size) and _is_missing(found, rows, size):
            yield found


def _is_plain(row: MappedWeight) -> bool:
    """Whether the columns of a row's matrix stand in the published order."""
    return row.layout is None or (len(row.layout.axes) < 3 and not row.layout.index)


def by_elimination(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """What is left over, where of a shape as much is missing: in the order of registration.

    First what lies in a known way, as nn.Linear's do, so that (C, 4C) is told from (4C, C); last, vectors whose name
    does not say whether they are a weight or a bias.
    """
    own = dict(module.named_parameters())
    for known in (True, False):
        missing: dict[tuple[object, ...], list[MappedWeight]] = {}
        for row in weight_names.absent(rows, size):
            kind = _kind(_shape(row, size), row.published.rpartition(".")[2], known)
            missing.setdefault(kind, []).append(row)
        left: dict[tuple[object, ...], list[str]] = {}
        for name, shape in _left(rows, module):
            if not known or len(shape) < 2 or weight_names.is_out_in(name, module):
                kind = _kind(shape[::-1] if known else shape, weight_names.stem_and_leaf(name)[1], known)
                left.setdefault(kind, []).append(name)
        for kind, wanted in missing.items():
            if len(left.get(kind, ())) != len(wanted):
                continue
            for row, name in zip(wanted, left[kind], strict=True):
                found = weight_names.row_of(row, name, tuple(own[name].shape), size, module)
                if found is not None:
                    rows += (replace(found, how="shape"),)
                    yield rows[-1]


def _kind(shape: tuple[int, ...], leaf: str, known: bool) -> tuple[object, ...]:
    """What can stand for one another: where the names do not say, a matrix whichever way it lies, and any vector."""
    core = tuple(n for n in shape if n != 1)
    if not known:
        return tuple(sorted(core))
    return core if len(core) > 1 else (*core, leaf)


def _left(rows: Rows, module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    held = {row.own for row in rows}
    return [(name, tuple(p.shape)) for name, p in module.named_parameters() if name not in held]


def _shape(row: MappedWeight, size: Size) -> tuple[int, ...]:
    """The published shape of what a row stands for."""
    shape = list(published_shapes(size)[row.published])
    if row.part is not None:
        shape[row.axis] = row.part[1] - row.part[0]
    return tuple(shape)


def _is_missing(row: MappedWeight, rows: Rows, size: Size) -> bool:
    """Whether nothing stands yet for what the row stands for."""
    held = [other for other in rows if other.published == row.published]
    if row.part is None:
        return not held
    return all(o.part is not None and (o.part[1] <= row.part[0] or row.part[1] <= o.part[0]) for o in held)
