"""What can be compared: the kinds of work, and the arms, which are ways to do any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.bench.comparison import Finding, Work

if TYPE_CHECKING:
    from harness.bench.arms.model_pool import Workshop

Judge = Callable[[str, Work], Finding]


@dataclass(frozen=True)
class Way:
    """What an arm does differently, whatever the work: who computes, in which types, with which attention.

    `peer` is one of `harness.bench.peers`, else the subject computes. `options` is for the kinds of work that know them.
    `claims` is what a witness must see (`harness.bench.witness.refusal`). The way exists on `devices` alone.
    """

    name: str
    what: str
    peer: str | None = None
    dtype: str = "float32"
    autocast: str | None = None
    attention: str | None = None
    compiled: bool = False
    devices: tuple[str, ...] = ("cpu", "cuda")
    options: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def computes(self) -> str:
        """The type that its matrix products run in."""
        return self.autocast or self.dtype


@dataclass(frozen=True)
class Kind:
    """A kind of work: `build(workshop, way, copy, **parameters)` makes an arm's call, `judge` its judge."""

    name: str
    build: Callable[..., Work]
    judge: Callable[..., Judge]
    parameters: Collection[str]


_ways: dict[str, Way] = {}
_kinds: dict[str, Kind] = {}


def way(name: str, what: str, **differently: Any) -> None:
    """Register an arm under its own name."""
    assert name not in _ways, f"two arms are called {name}"
    _ways[name] = Way(name, what, **differently)


def kind(name: str, *, judge: Callable[..., Judge]) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Register the decorated function as what makes the calls of work `name`.

    Its parameters after `workshop, way, copy` are keywords: the point and the parameters of a comparison.
    `judge(workshop, control, ways, **parameters)` gives what verifies the answers.
    """

    def register(build: Callable[..., Work]) -> Callable[..., Work]:
        assert name not in _kinds, f"two kinds of work are called {name}"
        keywords = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
        _kinds[name] = Kind(name, build, judge, keywords)
        return build

    return register


def ways() -> Mapping[str, Way]:
    """Every arm by name."""
    _load()
    return _ways


def kinds() -> Mapping[str, Kind]:
    """Every kind of work by name."""
    _load()
    return _kinds


def _load() -> None:
    """Import the modules that register: `harness.bench.arms.named`, and those of the kinds of work."""
    from harness.bench.arms import attention, generation, models, named, startup, training

    assert all((attention, generation, models, named, startup, training))


def work_of(workshop: Workshop, work: str, arm: str, copy: int = 0, **parameters: Any) -> Work:
    """The call that arm `arm` makes for work `work`; raises Missing where the arm cannot be had here."""
    return kinds()[work].build(workshop, ways()[arm], copy, **parameters)
