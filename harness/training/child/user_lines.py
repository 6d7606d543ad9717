"""The user's functions that are being executed: the lines that they are at, and the values in them."""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
from collections import deque
from collections.abc import Callable, Iterator
from types import FrameType, ModuleType
from typing import Any

import torch

from harness.core.error_text import display_path, is_user_file

COMPREHENSIONS = frozenset(("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"))
MOST, DEEPEST = 5000, 3  # objects that are looked at, and attributes of attributes


def user_line() -> str:
    """Return the innermost line of a user's file that is being executed, as `train.py:118: loss.backward()`; or ""."""
    frame = next(users_frames(), None)
    return "" if frame is None else line_of(frame)


def outer_line() -> str:
    """Return the line that called the function of that innermost line; "" if no function of the user did."""
    frames = users_frames()
    for frame in frames:
        if frame.f_code.co_name not in COMPREHENSIONS:  # their own frames are a part of the function
            break
    outer = next(frames, None)
    return "" if outer is None else line_of(outer)


def users_frames() -> Iterator[FrameType]:
    """Yield the frames of the user's functions that are being executed, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            yield frame
        frame = frame.f_back


def line_of(frame: FrameType) -> str:
    """Return the line that a frame of a user's file is at."""
    return _line(frame.f_code.co_filename, frame.f_lineno)


def definition_of(frame: FrameType) -> str:
    """Return the line on which the function of a frame of a user's file is defined."""
    return _line(frame.f_code.co_filename, frame.f_code.co_firstlineno)


def definition_line(function: Callable[..., object]) -> str:
    """Return the line on which a function of the user is defined; "" if it is another's."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    return _line(code.co_filename, code.co_firstlineno) if code and is_users(code.co_filename) else ""


def _line(file: str, number: int) -> str:
    return f"{_shown(file)}:{number}: {linecache.getline(file, number).strip()}"


@functools.cache
def is_users(file: str) -> bool:
    """Return True for a file of the user's."""
    return is_user_file(file)


@functools.cache
def _shown(file: str) -> str:
    return display_path(file)


def values_in_frames() -> Iterator[tuple[str, Any]]:
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
