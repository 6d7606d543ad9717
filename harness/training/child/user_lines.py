"""The line of the user's program that is being executed."""

from __future__ import annotations

import functools
import linecache
import sys
from types import FrameType

from harness.core.error_text import display_path, is_user_file


def user_line() -> str:
    """Return the innermost line of a user's file that is being executed, as `train.py:118: loss.backward()`; or ""."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if _is_users(file):
            source = linecache.getline(file, frame.f_lineno).strip()
            return f"{_shown(file)}:{frame.f_lineno}: {source}"
        frame = frame.f_back
    return ""


@functools.cache
def _is_users(file: str) -> bool:
    return is_user_file(file)


@functools.cache
def _shown(file: str) -> str:
    return display_path(file)
