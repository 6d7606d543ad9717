"""Ctrl-C: waiting with it until something short is done, and its traceback."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Have Ctrl-C inside the block raise KeyboardInterrupt once it has ended. The main thread alone receives it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: came.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


def without_entries_of_no_line(error: BaseException) -> None:
    """Remove, below the first, the entries of a traceback that have no line, which pytest cannot show.

    Python 3.11 has such entries where Ctrl-C comes between two lines.
    """
    entry = error.__traceback__
    while entry is not None:
        while entry.tb_next is not None and entry.tb_next.tb_lineno is None:
            entry.tb_next = entry.tb_next.tb_next
        entry = entry.tb_next
