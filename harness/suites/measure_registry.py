"""The registry of measures, which are pure functions from a subject and parameters to a reading."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Scalar = bool | int | float | str


@dataclass(frozen=True)
class Reading:
    """The result of a measure: one value, or a value for each place that it measured (at least one)."""

    value: Scalar | Mapping[str, Scalar]
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OneOf:
    """The names that a parameter may have: `arm: Annotated[str, OneOf(arm_specs)]`. They are asked for when needed."""

    names: Callable[[], Iterable[str]]


@dataclass(frozen=True)
class Measure:
    """A registered measure.

    `needs` is the protocol that its subject must satisfy, `parameters` are its keywords, `types` their annotations, and
    `names` of some of them all that are known.
    """

    name: str
    function: Callable[..., Reading]
    needs: type
    parameters: Mapping[str, inspect.Parameter]
    types: Mapping[str, Any]
    names: Mapping[str, OneOf] = field(default_factory=dict)

    @property
    def required(self) -> set[str]:
        """The parameters without a default."""
        return {name for name, p in self.parameters.items() if p.default is inspect.Parameter.empty}


# Filled by the modules of harness.measures as they are imported; `harness.measures.all_measures` imports them all.
REGISTRY: dict[str, Measure] = {}


def measure(function: Callable[..., Reading]) -> Callable[..., Reading]:
    """Register `function(subject: Protocol, *, parameter: type = default, ...) -> Reading` under its name."""
    types = typing.get_type_hints(function)
    annotated = typing.get_type_hints(function, include_extras=True)
    names = {key: each for key, hint in annotated.items() for each in getattr(hint, "__metadata__", ())}
    subject, *parameters = inspect.signature(function).parameters.values()
    assert all(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters), (
        f"{function.__name__}: every parameter after the subject must be keyword-only"
    )
    name = function.__name__
    assert name not in REGISTRY, f"two measures have the name {name}"
    REGISTRY[name] = Measure(name, function, types[subject.name], {p.name: p for p in parameters}, types, names)
    return function
