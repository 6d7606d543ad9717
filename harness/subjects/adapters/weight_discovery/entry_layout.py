"""The layout of an own tensor, read off the entries of it that stand in each place of the published one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.subjects.weight_map import Layout, MappedWeight


def with_layout(row: MappedWeight, entries: Tensor, shape: tuple[int, ...], size: Size) -> MappedWeight | None:
    """Return the row with its orientation or layout; None for an arrangement that is no view of the own tensor.

    `entries` are indices within the own tensor of shape `shape`, in the published places.
    """
    everything = torch.arange(math.prod(shape)).view(shape)
    if entries.shape == shape and torch.equal(everything, entries):
        return row
    if len(shape) == 2 and entries.shape == shape[::-1] and torch.equal(everything.mT, entries):
        return replace(row, transposed=True)
    for view in _views(shape, size):
        layout = _layout(entries, view, size)
        if layout is None:
            continue
        layout = replace(layout, view=None if view == shape else view)
        if torch.equal(layout.flat(layout.seen(everything)), entries):
            return replace(row, layout=layout)
    return None


def _views(shape: tuple[int, ...], size: Size) -> Iterator[tuple[int, ...]]:
    """Yield the shape without axes of length one, then with one fused axis split into its factors in every order."""
    core = tuple(n for n in shape if n != 1)
    yield core
    H, D, C = size.heads, size.head_width, size.width
    for axis, n in enumerate(core):
        factors: list[tuple[int, ...]] = []
        for m in (2, 3):
            if n == m * C:
                factors += [(m, C), *itertools.permutations((m, H, D))]
        if n == C:
            factors += [(H, D), (D, H)]
        for split in factors:
            yield (*core[:axis], *split, *core[axis + 1 :])


def _layout(entries: Tensor, view: tuple[int, ...], size: Size) -> Layout | None:
    """Return the layout that maps each axis of `entries` to axes of `view` by its stride; None where there is none."""
    strides = [math.prod(view[axis + 1 :]) for axis in range(len(view))]
    base = int(entries.flatten()[0])
    axes: list[tuple[int, int]] = []  # (axis of the view, length)
    rows = None
    for axis in range(entries.ndim):
        line = entries.movedim(axis, 0).flatten(1)[:, 0] if entries.ndim > 1 else entries
        found = _axes_of(line - line[0], view, strides, size)
        if found is None:
            return None
        if axis == 0 and entries.ndim > 1:
            rows = len(found)
        axes += found
    if len({axis for axis, _ in axes}) != len(axes):
        return None
    index: list[int | tuple[int, int] | None] = []
    lengths = dict(axes)
    for axis, n in enumerate(view):
        start = base // strides[axis] % n
        if axis not in lengths:
            index.append(start)
        else:
            index.append(None if lengths[axis] == n else (start, start + lengths[axis]))
    remaining = sorted(lengths)  # the axes that an integer index does not drop
    return Layout(tuple(remaining.index(axis) for axis, _ in axes), rows, view, tuple(index))


def _axes_of(line: Tensor, view: tuple[int, ...], strides: list[int], size: Size) -> list[tuple[int, int]] | None:
    """Return the axes of the view, with lengths, that a line of memory offsets runs along, outermost first."""
    n, H, D = len(line), size.heads, size.head_width
    splits: list[tuple[int, ...]] = [(n,)]
    if n == H * D:
        splits.append((H, D))
    if n == 3 * H * D:
        splits += [(3, H * D), (3, H, D)]
    for split in splits:
        found = []
        for level, length in enumerate(split):
            stride = int(line[math.prod(split[level + 1 :])]) if length > 1 else 0
            axis = next((a for a, s in enumerate(strides) if s == stride and view[a] >= length), None)
            if axis is None:
                break
            found.append((axis, length))
        if len(found) == len(split):
            expected = torch.zeros(1, dtype=torch.long)
            for axis, length in found:
                expected = (expected[:, None] + torch.arange(length) * strides[axis]).flatten()
            if torch.equal(expected, line):
                return found
    return None
