"""The registry of measures: small pure functions from a subject and parameters to a reading."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Reading:
    """What a measure found: one value, or a value for each place where it looked (never none)."""

    value: Scalar | Mapping[str, Scalar]
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A registered measure: `needs` is the protocol that its subject must satisfy, `parameters` its keywords."""

    name: str
    function: Callable[..., Reading]
    needs: type
    parameters: Mapping[str, inspect.Parameter]
    types: Mapping[str, Any]

    @property
    def required(self) -> set[str]:
        """Parameters without a default."""
        return {name for name, p in self.parameters.items() if p.default is inspect.Parameter.empty}


_registry: dict[str, Measure] = {}


def measure(function: Callable[..., Reading]) -> Callable[..., Reading]:
    """Register `function(subject: Protocol, *, parameter: type = default, ...) -> Reading` under its own name."""
    types = typing.get_type_hints(function)
    subject, *parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters), (
        f"{function.__name__}: keyword-only, please"
    )
    name = function.__name__
    assert name not in _registry, f"two measures are called {name}"
    _registry[name] = Measure(name, function, types[subject.name], {p.name: p for p in parameters}, types)
    return function


def measures() -> Mapping[str, Measure]:
    """Every measure by name; the first call imports the modules of `harness.measures`."""
    from harness.measures import load_all

    load_all()
    return _registry
