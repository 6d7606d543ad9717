"""Attributes that are replaced while a recorder is active, and restored afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

_MISSING = object()


class Patches:
    """Replaced attributes of modules and classes, in the order in which they were replaced."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []

    def replace(self, owner: Any, name: str, replacement: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `replacement(original)`."""
        self._originals.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, replacement(getattr(owner, name)))

    def restore(self) -> None:
        """Restore every attribute, the last one first."""
        while self._originals:
            owner, name, original = self._originals.pop()
            if original is _MISSING:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)
