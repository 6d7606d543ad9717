"""Match the parameters that neither a name nor a use explains: by the other layers, their weight, and elimination."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.weight_discovery.layer_numbers import numbered
from harness.subjects.adapters.weight_discovery.name_map import missing_rows
from harness.subjects.adapters.weight_discovery.names import stem_and_leaf
from harness.subjects.adapters.weight_discovery.parameter_rows import is_out_in, row_of_missing
from harness.subjects.weight_map import MappedWeight, published_shapes

Rows = tuple[MappedWeight, ...]


def by_analogy(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Yield rows for parameters of one layer, as for the parameters of the same name in another layer."""
    layers = numbered(module, size)
    alike: dict[str, list[MappedWeight]] = {}
    for row in rows:
        place = layers.get(row.own)
        if place is not None and f".h.{place.layer}." in row.published:
            any_layer = row.published.replace(f".h.{place.layer}.", ".h.#.")
            alike.setdefault(place.without, []).append(replace(row, published=any_layer))
    for name, _ in _unmapped(rows, module):
        place = layers.get(name)
        if place is None:
            continue
        for row in dict.fromkeys(replace(row, own=name, evidence="analogy") for row in alike.get(place.without, ())):
            found = replace(row, published=row.published.replace(".h.#.", f".h.{place.layer}."))
            if _is_missing(found, rows, size):
                yield found


def with_their_weights(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Yield rows for unused biases: each belongs to the component of its weight."""
    weights = {}
    for row in rows:
        stem, leaf = stem_and_leaf(row.own)
        if leaf == "weight" and row.published.endswith(".weight") and _has_published_columns(row):
            weights[stem] = row
    shapes = published_shapes(size)
    for name, shape in _unmapped(rows, module):
        stem, leaf = stem_and_leaf(name)
        weight = weights.get(stem)
        if leaf != "bias" or weight is None:
            continue
        published = weight.published.removesuffix("weight") + "bias"
        found = MappedWeight(published, name, part=weight.part, evidence="analogy")
        if published in shapes and shape == _shape(found, size) and _is_missing(found, rows, size):
            yield found


def _has_published_columns(row: MappedWeight) -> bool:
    """Return True if the columns of a row's matrix are in the published order."""
    return row.layout is None or (len(row.layout.axes) < 3 and not row.layout.index)


def by_elimination(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Yield rows for parameters of a shape of which as many are unmapped as are missing, in order of registration.

    The first pass takes parameters of known orientation, as nn.Linear's, so that (C, 4C) is distinguished from (4C, C).
    The second takes matrices of either orientation, and vectors whose name does not say weight or bias.
    """
    own = dict(module.named_parameters())
    for oriented in (True, False):
        missing: dict[tuple[object, ...], list[MappedWeight]] = {}
        for row in missing_rows(rows, size):
            key = _interchangeable(_shape(row, size), row.published.rpartition(".")[2], oriented)
            missing.setdefault(key, []).append(row)
        unmapped: dict[tuple[object, ...], list[str]] = {}
        for name, shape in _unmapped(rows, module):
            if not oriented or len(shape) < 2 or is_out_in(name, module):
                key = _interchangeable(shape[::-1] if oriented else shape, stem_and_leaf(name)[1], oriented)
                unmapped.setdefault(key, []).append(name)
        for key, candidates in missing.items():
            if len(unmapped.get(key, ())) != len(candidates):
                continue
            for row, name in zip(candidates, unmapped[key], strict=True):
                found = row_of_missing(row, name, tuple(own[name].shape), size, module)
                if found is not None:
                    rows += (replace(found, evidence="shape"),)
                    yield rows[-1]


def head_bias(rows: Rows, module: nn.Module, size: Size) -> Iterator[MappedWeight]:
    """Yield the row of a bias of the head, which GPT-2 does not have: the one vector with a number for each token."""
    found = [name for name, shape in _unmapped(rows, module) if shape == (size.vocab_size,)]
    if len(found) == 1 and all(row.published != "lm_head.bias" for row in rows):
        yield MappedWeight("lm_head.bias", found[0], evidence="shape")


def _interchangeable(shape: tuple[int, ...], leaf: str, oriented: bool) -> tuple[object, ...]:
    """Return a key that is equal for parameters that can stand for one another.

    Without `oriented`, a matrix equals its transpose, and a weight vector equals a bias.
    """
    core = tuple(n for n in shape if n != 1)
    if not oriented:
        return tuple(sorted(core))
    return core if len(core) > 1 else (*core, leaf)


def _unmapped(rows: Rows, module: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of the own parameters that have no row."""
    mapped = {row.own for row in rows}
    return [(name, tuple(p.shape)) for name, p in module.named_parameters() if name not in mapped]


def _shape(row: MappedWeight, size: Size) -> tuple[int, ...]:
    """Return the published shape of a row: of the part, where it has one."""
    shape = list(published_shapes(size)[row.published])
    if row.part is not None:
        shape[row.axis] = row.part[1] - row.part[0]
    return tuple(shape)


def _is_missing(row: MappedWeight, rows: Rows, size: Size) -> bool:
    """Return True if no other row covers the published tensor, or the part of it, that the row stands for."""
    others = [other for other in rows if other.published == row.published]
    if row.part is None:
        return not others
    return all(o.part is not None and (o.part[1] <= row.part[0] or row.part[1] <= o.part[0]) for o in others)
