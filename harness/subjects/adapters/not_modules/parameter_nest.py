"""Tensors in dicts, lists, tuples and dataclasses as the parameters of a module, and the nest rebuilt from them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class Place:
    """A place in a nest that a parameter has: its dotted path."""

    path: str


class Container(nn.Module):
    """A level of a nest: it has parameters and other levels, and no forward pass."""


def mapped(nest: Any, kind: type, function: Callable[[str, Any], Any], path: str = "") -> Any:
    """Return a copy of the nest with `function(path, leaf)` in place of each leaf of type `kind`."""

    def inner(key: Any, value: Any) -> Any:
        return mapped(value, kind, function, f"{path}.{key}" if path else str(key))

    if isinstance(nest, kind):
        return function(path, nest)
    if isinstance(nest, Mapping):
        return {key: inner(key, value) for key, value in nest.items()}
    if isinstance(nest, tuple) and hasattr(nest, "_fields"):
        return type(nest)(*(inner(key, value) for key, value in zip(nest._fields, nest, strict=True)))
    if isinstance(nest, list | tuple):
        return type(nest)(inner(key, value) for key, value in enumerate(nest))
    if dataclasses.is_dataclass(nest) and not isinstance(nest, type):
        names = [field.name for field in dataclasses.fields(nest) if field.init]
        return dataclasses.replace(nest, **{name: inner(name, getattr(nest, name)) for name in names})
    return nest


def register_nest(module: nn.Module, nest: Any) -> Any:
    """Register the tensors of floating point as parameters, each once; return the nest with their places."""
    made: dict[int, Place] = {}

    def registered(path: str, tensor: Tensor) -> Any:
        if not tensor.is_floating_point():
            return tensor
        if id(tensor) not in made:
            made[id(tensor)] = Place(path)
            register(module, path, tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor.detach()))
        return made[id(tensor)]

    return mapped(nest, Tensor, registered)


def register(module: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted path, with a container for each word before the last."""
    *words, last = path.split(".")
    for word in words:
        if word not in module._modules:
            module.add_module(word, Container())
        module = module._modules[word]  # type: ignore[assignment]
    module.register_parameter(last, parameter)
