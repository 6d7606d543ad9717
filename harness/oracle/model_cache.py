"""The model cache: the last model, which neighbouring checks share, and the oracle's outputs at small sizes."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

from harness.oracle.declared import declared_gpt2

T = TypeVar("T")
_last: dict[Hashable, Any] = {}  # one entry
_small: dict[Hashable, Any] = {}


def cached(key: Hashable, make: Callable[[], T]) -> T:
    """Return the cached value if `key` is that of the last call, otherwise `make()`. Do not write into the value.

    Only one value is cached: a model of 124M is half a gigabyte.
    """
    if key not in _last:
        clear()
        _last[key] = make()
    found: T = _last[key]
    return found


def cached_if_small(size: str, key: Hashable, make: Callable[[], T]) -> T:
    """Return `make()`, cached for the life of the process at the debug sizes. Do not write into the value.

    The value must not depend on the subject, as the outputs of the oracle do not. With declared deviations the oracle
    does depend on the subject, and nothing is cached.
    """
    if not size.startswith("debug") or declared_gpt2() is not None:
        return make()
    if (size, key) not in _small:
        _small[size, key] = make()
    found: T = _small[size, key]
    return found


def clear() -> None:
    """Free the last model."""
    _last.clear()


def forget() -> None:
    """Free everything: what was computed with another seed of the run is of no use."""
    clear()
    _small.clear()
