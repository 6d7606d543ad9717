"""Stand-ins for packages that are not installed: they can be named, but any use is a clear error, save a few."""

from __future__ import annotations

import ast
import importlib.util
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.importing import lightning_module


class _StubType(type):
    """The type of what a stub module contains: a class that can be named in annotations and as a base class."""

    why: str

    def __getattr__(cls: Any, name: str) -> Any:
        if name.startswith("__") or "is_stub" not in vars(cls):  # a user's subclass has no more than what it defines
            raise AttributeError(name)
        return stub_class(name, cls.why)

    def __call__(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if issubclass(cls, nn.Module):  # class GPT(nn.Module, AMixinOfTheMissingPackage)
            return super().__call__(*args, **kwargs)
        raise SubjectError(cls.why)


class StubModule(ModuleType):
    """A module in place of one that is not installed. `why` is the error that its use raises."""

    def __init__(self, name: str, why: str) -> None:
        super().__init__(name)
        self.why = why
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _in_place_of(self.__name__, name, self.why)


def _in_place_of(module: str, name: str, why: str) -> Any:
    stand_in = lightning_module.stand_in(name) if module.split(".")[0] in lightning_module.PACKAGES else None
    return stub_class(name, why) if stand_in is None else stand_in


def stub_class(name: str, why: str) -> type:
    """Return a class in place of something of a missing package."""
    return _StubType(name, (), {"why": why, "is_stub": True, "__init_subclass__": classmethod(lambda cls, **_: None)})


def missing_package(error: BaseException) -> str:
    """Return the name of the package whose absence caused the error; "" if another error, or a part of a package."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    package = error.name.split(".")[0]
    try:
        return "" if importlib.util.find_spec(package) else package
    except (ImportError, ValueError):
        return package


def bind_stubs(node: ast.Import | ast.ImportFrom, into: dict[str, Any], why: str) -> None:
    """Bind the names of an import statement to stubs."""
    for alias in node.names:
        if isinstance(node, ast.Import):
            into[alias.asname or alias.name.split(".")[0]] = StubModule(alias.name, why)
        elif alias.name != "*":
            into[alias.asname or alias.name] = _in_place_of(node.module or "", alias.name, why)
