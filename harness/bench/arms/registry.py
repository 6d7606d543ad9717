"""What can be compared: the work_kinds of work, and the arms, which are arm_specs to do any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from harness.bench.comparison import Verification, Work

if TYPE_CHECKING:
    from harness.bench.arms.model_pool import ModelPool

Verifier = Callable[[str, Work], Verification]


@dataclass(frozen=True)
class ArmSpec:
    """What an arm does differently, whatever the work: who computes, in which types, with which attention.

    `peer` is one of `harness.bench.peers`, else the subject computes. `options` is for the work_kinds of work that know them.
    `claims` is what a witness must see (`harness.bench.witness.refusal`). The arm exists on `devices` alone.
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
class WorkKind:
    """A work_kind of work: `build(pool, arm, copy, **parameters)` makes an arm's call, `judge` its judge."""

    name: str
    build: Callable[..., Work]
    judge: Callable[..., Verifier]
    parameters: Collection[str]


_ways: dict[str, ArmSpec] = {}
_kinds: dict[str, WorkKind] = {}


def arm(name: str, what: str, **differently: Any) -> None:
    """Register an arm under its own name."""
    assert name not in _ways, f"two arms are called {name}"
    _ways[name] = ArmSpec(name, what, **differently)


def work_kind(name: str, *, judge: Callable[..., Verifier]) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Register the decorated function as what makes the calls of work `name`.

    Its parameters after `pool, arm, copy` are keywords: the point and the parameters of a comparison.
    `judge(pool, control, arm_specs, **parameters)` gives what verifies the answers.
    """

    def register(build: Callable[..., Work]) -> Callable[..., Work]:
        assert name not in _kinds, f"two work_kinds of work are called {name}"
        keywords = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
        _kinds[name] = WorkKind(name, build, judge, keywords)
        return build

    return register


def arm_specs() -> Mapping[str, ArmSpec]:
    """Every arm by name."""
    _load()
    return _ways


def work_kinds() -> Mapping[str, WorkKind]:
    """Every work_kind of work by name."""
    _load()
    return _kinds


def _load() -> None:
    """Import the modules that register: `harness.bench.arms.named`, and those of the work_kinds of work."""
    from harness.bench.arms import attention, generation, models, named, startup, training

    assert all((attention, generation, models, named, startup, training))


def work_of(pool: ModelPool, work: str, arm: str, copy: int = 0, **parameters: Any) -> Work:
    """The call that arm `arm` makes for work `work`; raises Missing where the arm cannot be had here."""
    return work_kinds()[work].build(pool, arm_specs()[arm], copy, **parameters)
