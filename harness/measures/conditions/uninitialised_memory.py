"""Memory that nobody has written: filled with NaN, so that a model that reads it is wrong every time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def uninitialised_memory_filled() -> Iterator[None]:
    """Fill what torch.empty, to_empty and their like return inside the block: with NaN, the largest integer, or True.

    Otherwise such memory is what was there before: often the mask of a model that has just been freed, which is right
    by chance.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
