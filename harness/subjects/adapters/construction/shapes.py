"""The shapes of a built module: which of the sizes it has, and which size follows a changed setting."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from torch import nn

from harness.core.sizes import Size
from harness.subjects.adapters.construction.setting_names import SIZES, quantity_of

PADDING = 128  # rows that a vocabulary is padded by, at most, for fast matrix products
NEAR = 2  # a bug may make a table a row or two too short; that is for a check to find

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Shapes:
    """The shape of each parameter and buffer by name, and the numbers of heads that its modules state."""

    parameters: dict[str, Shape]
    buffers: dict[str, Shape]
    heads: frozenset[int] = field(default_factory=frozenset)

    @property
    def dims(self) -> set[int]:
        """Every length of an axis of a parameter."""
        return {n for shape in self.parameters.values() for n in shape}

    def repeated(self) -> set[str]:
        """Return the names of parameters that several layers have."""
        counts = Counter(_pattern(name) for name in self.parameters)
        return {name for name in self.parameters if counts[_pattern(name)] > 1}

    def depth(self) -> int:
        """Return how many blocks there are: the values of the number that most parameters have in their names, or 0."""
        places: dict[str, list[str]] = {}
        for name in self.parameters:
            if (number := re.search(r"\d+", name)) is not None:
                places.setdefault(name[: number.start()], []).append(number.group())
        most = max(map(len, places.values()), default=0)
        return max((len(set(numbers)) for numbers in places.values() if len(numbers) == most), default=0)


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module."""
    heads = {
        value
        for each in module.modules()
        for name, value in vars(each).items()
        if type(value) is int and quantity_of(name, ()) == "heads"
    }
    return Shapes(
        {name: tuple(p.shape) for name, p in module.named_parameters()},
        {name: tuple(b.shape) for name, b in module.named_buffers()},
        frozenset(heads),
    )


def lacking(shapes: Shapes, size: Size) -> list[str]:
    """Return which of the five sizes the module visibly does not have. What cannot be seen is not lacking."""
    if not shapes.parameters:
        return []
    dims = shapes.dims
    found = {
        "vocab_size": any(size.vocab_size - NEAR <= n <= size.vocab_size + PADDING for n in dims),
        "context": not _unexplained(shapes, size),
        "layers": _has_layers(shapes, size),
        "heads": not shapes.heads or size.heads in shapes.heads,
        "width": size.width in dims,
    }
    return [quantity for quantity in SIZES if not found[quantity]]


def only_buffers_are_longer(shapes: Shapes, size: Size) -> bool:
    """Return True if each length that nothing explains is a buffer's, and longer than the context.

    A table of sines, or a mask, may be longer than any sequence: nothing need set it.
    """
    lengths = _lengths(shapes, size)
    return not _strange(lengths[0], size) and min(_strange(lengths[1], size), default=size.context) >= size.context


def _unexplained(shapes: Shapes, size: Size) -> bool:
    """Return True if no axis is as long as the context, and a table or mask has a length that nothing explains."""
    every = [*shapes.parameters.values(), *shapes.buffers.values()]
    if any(abs(n - size.context) <= NEAR for shape in every for n in shape):
        return False
    return any(_strange(lengths, size) for lengths in _lengths(shapes, size))


def _lengths(shapes: Shapes, size: Size) -> tuple[set[int], set[int]]:
    """Return the lengths of the tables among the parameters, and of the buffers."""
    repeated = shapes.repeated()
    tables = [s for n, s in shapes.parameters.items() if len(s) > 1 and s[-1] == size.width and n not in repeated]
    return {n for shape in tables for n in shape[:-1]}, {n for s in shapes.buffers.values() for n in s[-2:]}


def _strange(lengths: set[int], size: Size) -> set[int]:
    """Return the lengths that are no multiple of a width, no vocabulary, and no number of layers or heads."""
    return {
        n
        for n in lengths - {size.layers, size.heads}
        if n > NEAR and n % size.width and (n % size.head_width or n > 3 * size.width)
        if not size.vocab_size <= n <= size.vocab_size + PADDING
    }


def _has_layers(shapes: Shapes, size: Size) -> bool:
    stacked = any(shape[0] == size.layers for shape in shapes.parameters.values() if len(shape) > 1)
    depth = shapes.depth()
    return stacked or depth == 0 or abs(depth - size.layers) <= 1


def follows(before: Shapes, after: Shapes, old: float, new: float, width: int, head_width: int) -> str | None:
    """Return the quantity that a setting is, as it was changed from `old` to `new`; "table" for vocabulary or context.

    None if no shape follows it.
    """
    if before.parameters == after.parameters:
        return "context" if before.buffers != after.buffers else None
    common = before.parameters.keys() & after.parameters.keys()
    changed = {name for name in common if before.parameters[name] != after.parameters[name]}
    if common != before.parameters.keys() | after.parameters.keys():
        return "layers" if not changed else "heads"
    inner = before.repeated() or {n for n, s in before.parameters.items() if len(s) == 3}
    if changed & inner and changed - inner:
        return "width"
    if not changed & inner:
        vectors = {n for n in changed if len(before.parameters[n]) == 1}
        return "width" if vectors and len(changed) > 3 else "table"
    steps = {
        abs(b - a) for n in changed for a, b in zip(before.parameters[n], after.parameters[n], strict=True) if a != b
    }
    step = abs(new - old)
    if all(before.parameters[n][0] == old and after.parameters[n][0] == new for n in changed) and len(changed) > 8:
        return "layers"  # each of the stacked parameters has one row a layer
    if step * width in steps or any(s % width == 0 and s == int(step * width) for s in steps):
        return "feed_forward_factor"
    if step in steps or 2 * step in steps:
        return "feed_forward_width"
    return "heads" if any(s == step * head_width * n for s in steps for n in (1, 2)) else "head_width"


def _pattern(name: str) -> str:
    return re.sub(r"\d+", "#", name)
