"""Lines of the user's source: which of them are on the call stack."""

from __future__ import annotations

import itertools
import linecache
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import FrameType

import torch

TORCH = os.path.dirname(torch.__file__)
_HARNESS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class SourceLine:
    """A line of source, as `file:number` in messages."""

    file: str
    number: int

    def __str__(self) -> str:
        folder = os.getcwd() + os.sep
        return f"{self.file.removeprefix(folder)}:{self.number}"

    @property
    def text(self) -> str:
        """The line without its indentation."""
        return linecache.getline(self.file, self.number).strip()


Stack = tuple[tuple[SourceLine, int], ...]  # innermost first: a line and the id of its frame's `self` (0: none)


def location(line: SourceLine | None) -> tuple[str, str]:
    """Return the `source` and the `text` of a finding for a line; two empty strings for None."""
    return ("", "") if line is None else (str(line), line.text)


def user_line() -> SourceLine | None:
    """Return the innermost line of the user's own on the stack; if there is none, an installed package's."""
    installed: SourceLine | None = None
    for frame in _frames():
        line = SourceLine(frame.f_code.co_filename, frame.f_lineno)
        if _is_users(line.file):
            return line
        if "pytest" not in line.file and "pluggy" not in line.file:
            installed = installed or line
    return installed


def user_stack(most: int = 6) -> Stack:
    """Return the user's lines on the stack, innermost first, at most so many."""
    frames = itertools.islice((frame for frame in _frames() if _is_users(frame.f_code.co_filename)), most)
    return tuple((SourceLine(frame.f_code.co_filename, frame.f_lineno), _self_of(frame)) for frame in frames)


def _frames() -> Iterator[FrameType]:
    """Yield the frames on the stack that are neither PyTorch's nor the harness's."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((TORCH, "<")) and not _is_harness(name):
            yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _self_of(frame: FrameType) -> int:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return id(frame.f_locals.get(names[0])) if names else 0


def _is_users(name: str) -> bool:
    return "site-packages" not in name and "_pytest" not in name and not name.endswith("/bin/pytest")


def _is_harness(name: str) -> bool:
    # The specimen of the faults and the models in the tests are subjects, although they are in the harness's folder.
    is_subject = f"{os.sep}tests{os.sep}" in name or name.endswith(f"{os.sep}faults{os.sep}specimen.py")
    return name.startswith(_HARNESS) and not is_subject
