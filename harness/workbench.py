"""The one model that neighbouring checks share, so that it is not built again for each of them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

T = TypeVar("T")
_bench: dict[Hashable, Any] = {}


def held(key: Hashable, make: Callable[[], T]) -> T:
    """What `make` gave for `key` the last time, if nothing else came between; read it, do not write into it."""
    if key not in _bench:
        clear()
        _bench[key] = make()
    found: T = _bench[key]
    return found


def clear() -> None:
    """Let go of it: a model of 124M is half a gigabyte."""
    _bench.clear()
