"""What checks share, so that it is not made again for each: the last model, and at small sizes what is true of all."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from harness.oracle.deviations import truth_in_force

T = TypeVar("T")
_bench: dict[Hashable, Any] = {}
_known: dict[Hashable, Any] = {}
frozen = False  # whether whoever runs many subjects has frozen what the garbage collector need not look at


def cached(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gave for `key` the last time, if nothing else came between; read it, do not write into it."""
    if key not in _bench:
        clear()
        _bench[key] = make()
    found: T = _bench[key]
    return found


def cached_if_small(size: str, key: Hashable, make: Callable[[], T]) -> T:
    """What is true whatever the subject (an oracle's answers): kept for the process where the size is small.

    Read it, do not write into it.
    """
    if not size.startswith("debug") or truth_in_force() is not None:
        return make()
    if (size, key) not in _known:
        _known[size, key] = make()
    found: T = _known[size, key]
    return found


def clear() -> None:
    """Let go of it: a model of 124M is half a gigabyte."""
    _bench.clear()
