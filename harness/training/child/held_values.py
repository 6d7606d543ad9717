"""What the user's functions hold that are being executed: local names, names of their modules, and what is inside."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from types import FrameType, ModuleType
from typing import Any

import torch

from harness.training.child.user_lines import users_frames

MOST, DEEPEST = 5000, 3  # objects that are looked at, and attributes of attributes


def held_values() -> Iterator[tuple[str, Any]]:
    """Yield each value once, with its name, `trainer.data.ids`: those of fewest dots first."""
    known = set[int]()
    waiting = deque((name, value, 0) for frame in users_frames() for name, value in _names_of(frame))
    while waiting and len(known) < MOST:
        name, value, depth = waiting.popleft()
        if id(value) in known or isinstance(value, str | int | float | bool | None):
            continue
        known.add(id(value))
        yield name, value
        if depth < DEEPEST:
            waiting += [(f"{name}.{key}", inner, depth + 1) for key, inner in _parts_of(value)]


def _names_of(frame: FrameType) -> list[tuple[str, Any]]:
    found = frame.f_locals if frame.f_locals is frame.f_globals else {**frame.f_globals, **frame.f_locals}
    return [(name, value) for name, value in found.items() if not name.startswith("__")]


def _parts_of(value: Any) -> list[tuple[str, Any]]:
    """Return what a container has, or an object that is no function, class, module or tensor."""
    if type(value) is dict:
        return [(str(key), inner) for key, inner in list(value.items())[:100]]
    if type(value) in (list, tuple):
        return [(str(index), inner) for index, inner in enumerate(value[:10])]
    if isinstance(value, ModuleType | type | torch.nn.Module | torch.Tensor) or not hasattr(value, "__dict__"):
        return []
    return [] if hasattr(value, "__code__") else list(vars(value).items())
