"""Exceptions described in one line, with the line of the user's file that raised them."""

from __future__ import annotations

import importlib.util
import os
import signal
import sysconfig
import traceback
from pathlib import Path

from harness.core.captured_output import shorten
from harness.core.printable import printable
from harness.core.process_exit import subject_at_work

LONGEST_MESSAGE = 500  # characters
_HARNESS = Path(__file__).parents[1]
_LIBRARIES = tuple(
    {
        *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
        *(os.path.dirname(spec.origin) for spec in [importlib.util.find_spec("torch")] if spec and spec.origin),
    }
)


def describe_error(error: BaseException) -> str:
    """Return the exception's type, its message (shortened) and its location, in one line."""
    location = error_location(error)
    message = " ".join(_message(error).split())[:LONGEST_MESSAGE]
    return printable(f"{type(error).__name__}: {message}{f' at {location}' if location else ''}")


def error_location(error: BaseException) -> str:
    """Return where an exception was raised, as `my_gpt.py:37 in forward`.

    It is the innermost line of a user's file, else the innermost line of all; "" for an exception never raised.
    """
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if is_user_file(frame.filename)]
    last = (own or frames)[-1:]
    return f"{display_path(last[0].filename)}:{last[0].lineno} in {last[0].name}" if last else ""


def raised_by_user(error: BaseException) -> bool:
    """Return True if a line of a user's file was being executed when the exception was raised."""
    return any(is_user_file(frame.filename) for frame in traceback.extract_tb(error.__traceback__))


def is_user_file(file: str) -> bool:
    """Return True if the file belongs neither to Python, nor to an installed package, nor to the harness."""
    if not file.startswith(os.sep) or file.startswith(_LIBRARIES) or "site-packages" in file:
        return False
    path = Path(file)
    return not path.is_relative_to(_HARNESS) or "tests" in path.relative_to(_HARNESS).parts


def display_path(file: str) -> str:
    """Return a path as the user would type it from the current folder."""
    folder = os.path.join(os.path.realpath("."), "")
    return os.path.realpath(file).removeprefix(folder)


def _message(error: BaseException) -> str:
    try:
        with subject_at_work():
            return str(error)
    except BaseException as second:  # a message that exits, too; Ctrl-C in it is as likely as a bolt of lightning
        return f"(its message cannot be shown: {type(second).__name__})"


def describe_refusal(error: OSError) -> str:
    """Return what the system refuses, and for which path, which may have thousands of characters, in one line."""
    return printable(f"{error.strerror}{f': {shorten(str(error.filename), 200)!r}' if error.filename else ''}")


def describe_exit(status: int) -> str:
    """Return how a process ended: its exit status, or the signal, which is a negative one."""
    if status >= 0:
        return f"the process exited with status {status}"
    because = {
        -signal.SIGKILL: " (out of memory, or killed from outside)",
        -signal.SIGALRM: " (its time limit, in a program that had taken its place)",
    }
    name = next((each.name for each in signal.Signals if each == -status), f"signal {-status}")  # real-time: no name
    return f"the process ended with {name}{because.get(status, '')}"
