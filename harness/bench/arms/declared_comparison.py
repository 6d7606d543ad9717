"""A declared comparison: one `[[comparison]]` of `benchmarks/*.toml`, and the comparison that it is at each point."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.bench.arms.all_arms import arm_specs, work_kinds
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, VerifiesSamples, WorkKind
from harness.bench.arms.workloads.decoding import VERIFIED_STEPS
from harness.bench.comparison import TWIN_SUFFIX, Arm, Comparison
from harness.bench.work import Sample, Verification, Work
from harness.core.sizes import Size


@dataclass(frozen=True)
class DeclaredComparison:
    """One comparison over its points: arms that do the same work. The first is the control.

    axis: the parameter of the work that the points are values of; None for a single point.
    quick: the points with --quick.
    weight: the share of the run's time.
    twin: True if the control is measured against itself at the first point.
    expect: expectations of the figures (`harness.bench.arms.derived_metrics`).
    place: the file and line of the declaration.
    """

    suite: str
    title: str
    name: str
    work: str
    arms: tuple[str, ...]
    axis: str | None
    points: tuple[int | None, ...]
    quick: tuple[int | None, ...]
    parameters: Mapping[str, int]
    weight: float
    twin: bool
    why: str
    expect: tuple[Mapping[str, Any], ...] = ()
    place: str = field(default="", compare=False)

    @property
    def label(self) -> str:
        """`attention forward`."""
        return f"{self.suite} {self.name}"

    @property
    def control(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    def points_for(self, size: Size, *, quick: bool) -> tuple[int | None, ...]:
        """Return the points that need no more positions than a model of that size has.

        If none does, the largest point that the model has room for.
        """
        points = self.quick if quick else self.points
        if self.work.startswith("attention") or self.axis not in ("tokens", "context", "new_tokens", "prompt"):
            return points
        taken = sum(self.parameters.get(key, 0) for key in ("prompt", "new_tokens")) + self._decoded_positions
        room = size.context - taken
        return tuple(point for point in points if point is not None and point <= room) or (room,)[: len(points)]

    @property
    def _decoded_positions(self) -> int:
        return VERIFIED_STEPS if self.work == "decode" else 0

    def parameters_at(self, size: Size, point: int | None) -> dict[str, int]:
        """Return the parameters of the work at a point, limited to the positions that the size has room for."""
        found = dict(self.parameters) if self.axis is None else {**self.parameters, self.axis: int(point or 0)}
        if not self.work.startswith("attention"):
            for key in ("tokens", "context"):
                if key in found:
                    found[key] = min(found[key], size.context - self._decoded_positions)
            if "new_tokens" in found:
                found["new_tokens"] = min(found["new_tokens"], size.context // 2)
            if "prompt" in found:
                found["prompt"] = min(found["prompt"], size.context - found.get("new_tokens", 1))
        return found

    def at(self, pool: ModelPool, point: int | None, *, twin: bool = True) -> Comparison:
        """Return the comparison at one point, ready to be measured. Builds no model yet."""
        kind, specs = work_kinds()[self.work], {name: arm_specs()[name] for name in self.arms}
        parameters = self.parameters_at(pool.size, point)
        arms = [_arm(kind, pool, spec, parameters) for spec in specs.values()]
        if twin:
            arms.append(_arm(kind, pool, specs[self.control], parameters, twin_of=self.control))
        with_twin = {**specs, self.control + TWIN_SUFFIX: specs[self.control]}
        verify = _LazyVerifier(lambda: kind.make_verifier(pool, self.control, with_twin, **parameters))
        return Comparison(
            name=self.suite,
            title=self.title,
            metric=self.name,
            axis=self.axis and self.axis.replace("_", " "),
            point=point,
            control=self.control,
            arms=tuple(arms),
            verify=verify,
            verify_sample=verify.verify_sample,
            why=self.why,
        )


def _arm(
    kind: WorkKind, pool: ModelPool, spec: ArmSpec, parameters: Mapping[str, int], twin_of: str | None = None
) -> Arm:
    build = functools.partial(kind.build, pool, spec, 1 if twin_of else 0, **parameters)
    name = spec.name + (TWIN_SUFFIX if twin_of else "")
    checked = _check_available_first(pool, spec, build)
    peer, about = spec.peer is not None, spec.description
    return Arm(name, checked, twin_of, spec.claims, peer=peer, beside=spec.beside, description=about)


def _check_available_first(pool: ModelPool, spec: ArmSpec, build: Callable[[], Work]) -> Callable[[], Work]:
    def checked_build() -> Work:
        pool.subject_for(spec)  # first: if the arm is not for this device, that is the reason to report
        return build()

    return checked_build


class _LazyVerifier:
    """A verifier that is made at its first use, because collecting tests must not build a model."""

    def __init__(self, make: Callable[[], Verifier]) -> None:
        self.make = make

    @functools.cached_property
    def verifier(self) -> Verifier:
        """The verifier, made at the first access."""
        return self.make()

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm."""
        return self.verifier(name, work)

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on what one arm returned while it was timed."""
        assert isinstance(self.verifier, VerifiesSamples), "work that keeps samples has a verifier of samples"
        return self.verifier.verify_sample(name, work, sample)
