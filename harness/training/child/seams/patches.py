"""Attributes that are replaced while a recorder is active, and restored afterwards."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_MISSING = object()


class Patches:
    """Replaced attributes of modules and classes, in the order in which they were replaced."""

    def __init__(self) -> None:
        self._originals: list[tuple[Any, str, Any]] = []
        self._finders: list[_Finder] = []

    def replace(self, owner: Any, name: str, replacement: Callable[[Any], Any]) -> None:
        """Replace `owner.name` by `replacement(original)`."""
        self._originals.append((owner, name, vars(owner).get(name, _MISSING)))
        setattr(owner, name, replacement(getattr(owner, name)))

    def when_imported(self, name: str, then: Callable[[ModuleType], None]) -> None:
        """Call `then` with a module as soon as it is there: a program that does not import it does not wait for it."""
        if name in sys.modules:
            then(sys.modules[name])
            return
        self._finders.append(_Finder(name, then))
        sys.meta_path.insert(0, self._finders[-1])

    def restore(self) -> None:
        """Restore every attribute, the last one first."""
        while self._finders:
            finder = self._finders.pop()
            if finder in sys.meta_path:
                sys.meta_path.remove(finder)
        while self._originals:
            owner, name, original = self._originals.pop()
            if original is _MISSING:  # it was inherited
                delattr(owner, name)
            else:
                setattr(owner, name, original)


class _Finder:
    """Finds one module once, as it is found without this, and calls a function after it has run."""

    def __init__(self, name: str, then: Callable[[ModuleType], None]) -> None:
        self.name, self.then = name, then

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """Return the module's spec; None for every other module."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self.then)
        return spec


class _Loader(Loader):
    """Loads a module as another loader does, which is the module's own again, and calls a function with it."""

    def __init__(self, own: Loader, then: Callable[[ModuleType], None]) -> None:
        self.own, self.then = own, then

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        """Return what the other loader makes."""
        return self.own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module."""
        module.__loader__ = self.own
        if module.__spec__ is not None:
            module.__spec__.loader = self.own
        self.own.exec_module(module)
        self.then(module)
