"""The line of the user's program that is being executed."""

from __future__ import annotations

import functools
import inspect
import linecache
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from harness.core.error_text import display_path, is_user_file


def user_line() -> str:
    """Return the innermost line of a user's file that is being executed, as `train.py:118: loss.backward()`; or ""."""
    frame = next(users_frames(), None)
    return "" if frame is None else line_of(frame)


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
