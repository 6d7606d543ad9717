"""Say on standard error what is waited for, once it has taken some seconds, and at which line it is."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator

from harness.core.error_text import display_path, is_user_file

SECONDS = 5.0


@contextlib.contextmanager
def said_if_slow(what: str, seconds: float = SECONDS, *, doing: str = "importing or building") -> Iterator[None]:
    """Write one line to standard error, as it is now, if the block takes longer than `seconds`, and one each minute.

    `doing` says what takes the time, after "has been".

    Inside the block standard error may be captured: the line goes to where it went before.
    """
    try:
        stderr = os.dup(2)
    except OSError:  # a process may have no standard error
        yield
        return
    waited, main = seconds, threading.get_ident()
    done = threading.Event()

    def say() -> None:
        nonlocal waited
        pause = seconds
        while not done.wait(pause):
            place = line_of(main)
            text = f"gpt-harness: {what} has been {doing} for {waited:.0f} s"
            with contextlib.suppress(OSError):
                os.write(stderr, f"{text}{f': at {place}' if place else ''}\n".encode("utf-8", "replace"))
            pause = 60.0
            waited += pause

    thread = threading.Thread(target=say, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        os.close(stderr)


def line_of(thread: int) -> str:
    """Return the innermost line of a user's file that a thread is executing; "" if it is in none."""
    frame = sys._current_frames().get(thread)
    while frame is not None and not (
        frame.f_code.co_filename.endswith(".py") and is_user_file(frame.f_code.co_filename)
    ):
        frame = frame.f_back
    return "" if frame is None else f"{display_path(frame.f_code.co_filename)}:{frame.f_lineno}"
