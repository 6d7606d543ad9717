"""The registry of the kinds of work, and ArmSpec, which describes an arm that does any of them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from harness.bench.work import Sample, Verification, Work

Verifier = Callable[[str, Work], Verification]


@runtime_checkable
class VerifiesSamples(Protocol):
    """A verifier of work that keeps samples of what its timed calls return."""

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on what an arm returned while it was timed; its first answer must be verified."""
        ...


@dataclass(frozen=True)
class ArmSpec:
    """The description of an arm, for any kind of work: who computes, in which dtypes, with which attention.

    description: one line, for messages and reports.
    peer: a name in `harness.bench.peers`; None if the subject computes.
    beside: of a peer, the subject's arm that does the same work in the same way, where there are several.
    devices: the devices that the arm exists on.
    weights: how the harness stores the weights of linear layers ("packed", "int8", "int4"); None for plain ones in
        `dtype`, and for a peer that stores them otherwise (the option `stored_as`).
    options: for the kinds of work that read them.
    claims: what a witness must see of the arm (`harness.bench.witness.violated_claim`).
    """

    name: str
    description: str
    peer: str | None = None
    beside: str | None = None
    dtype: str = "float32"
    autocast: str | None = None
    attention: str | None = None
    compiled: bool = False
    weights: str | None = None
    devices: tuple[str, ...] = ("cpu", "cuda")
    options: Mapping[str, Any] = field(default_factory=dict)
    claims: Mapping[str, Any] = field(default_factory=dict)

    @property
    def computes(self) -> str:
        """The dtype of its matrix products."""
        return self.autocast or self.dtype

    @property
    def stored_as(self) -> str | None:
        """The form of its linear layers' weights: one that the harness stores, or that the peer does by itself."""
        return self.weights or self.options.get("stored_as")


@dataclass(frozen=True)
class WorkKind:
    """A kind of work.

    `build(pool, arm, copy, **parameters)` returns the work of an arm. `make_verifier(pool, control, arm_specs,
    **parameters)` returns what verifies the answers of the arms.
    """

    name: str
    build: Callable[..., Work]
    make_verifier: Callable[..., Verifier]
    parameters: Collection[str]


WORK_KINDS: dict[str, WorkKind] = {}


def work_kind(
    name: str, *, make_verifier: Callable[..., Verifier]
) -> Callable[[Callable[..., Work]], Callable[..., Work]]:
    """Register the decorated function as the one that builds work of the kind `name`.

    Its parameters after `pool, arm, copy` are keyword-only: they are the axis and the parameters of a comparison.
    """

    def register(build: Callable[..., Work]) -> Callable[..., Work]:
        assert name not in WORK_KINDS, f"two kinds of work are called {name}"
        keywords = [p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY]
        WORK_KINDS[name] = WorkKind(name, build, make_verifier, keywords)
        return build

    return register
