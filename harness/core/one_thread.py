"""One thread for what is small: a second one costs more than it saves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside the block.

    A matrix product of a debug size takes microseconds; handing half of it to another thread takes longer. On two idle
    cores the debug checks of a wrong subject take 1.4 times as long with two threads, on two busy ones 16 times. Those
    of the long debug size take 5 times as many CPU seconds on two busy cores.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
