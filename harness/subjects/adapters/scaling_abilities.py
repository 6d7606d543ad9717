"""The abilities that concern scaling laws, each found as a function of the subject's module or class."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

from harness.core.errors import MissingAbility
from harness.subjects.adapters.construction.constructor import Constructor
from harness.subjects.adapters.scaling_law import (
    CONSTANTS,
    ScalingFunction,
    as_exponent,
    as_law,
    as_sizes,
    read_table,
    scaling_function_of,
)


class _HasFunction:
    """A mixin of the adapted subject: an ability that one function gives it, `purpose` in the table of names."""

    purpose: ClassVar[str]
    kind: type
    name: str
    module: ModuleType | None

    @classmethod
    def found_in(cls, kind: type, constructor: Constructor, module: ModuleType | None) -> bool:
        """Return True if the model class or its module has the function."""
        return scaling_function_of(cls.purpose, kind, module) is not None


class _FitsScalingLaw(_HasFunction):
    purpose = "fit"

    @property
    def fit_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return _function(self, "fit").line

    def fit_law(self, N: Any, D: Any, L: Any) -> Mapping[str, float]:
        """Return E, A, B, alpha and beta; see `FitsScalingLaw.fit_law`."""
        return as_law(_function(self, "fit").call({"N": N, "D": D, "L": L}))


class _FitsIsoFlops(_HasFunction):
    purpose = "iso_flops"

    @property
    def iso_flops_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return _function(self, "iso_flops").line

    def fit_iso_flops(self, C: Any, N: Any, D: Any, L: Any) -> float:
        """Return the exponent of N_opt; see `FitsIsoFlops.fit_iso_flops`."""
        return as_exponent(_function(self, "iso_flops").call({"C": C, "N": N, "D": D, "L": L}))


class _AllocatesCompute(_HasFunction):
    purpose = "optimum"

    @property
    def allocation_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return _function(self, "optimum").line

    def allocate(self, C: float, law: Mapping[str, float]) -> tuple[float, float | None]:
        """Return N_opt and D_opt; see `AllocatesCompute.allocate`."""
        function = _function(self, "optimum")
        return as_sizes(function.call({"C": C, **law}, law=_Constants(**{name: law[name] for name in CONSTANTS})))


class _CountsTrainingFlops(_HasFunction):
    purpose = "flops"

    @property
    def flops_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return _function(self, "flops").line

    def training_flops(self, N: float, D: float) -> float:
        """Return the FLOPs; see `CountsTrainingFlops.training_flops`."""
        return float(_function(self, "flops").call({"N": N, "D": D}))


class _ReadsRuns(_HasFunction):
    purpose = "runs"

    @property
    def runs_line(self) -> tuple[str, int]:
        """The file and the line of the function."""
        return _function(self, "runs").line

    def read_runs(self, path: Path) -> Mapping[str, Any]:
        """Return N, D and L; see `ReadsRuns.read_runs`."""
        return read_table(_function(self, "runs"), path)


class _Constants(dict[str, float]):
    """The constants of a law as keys and as attributes, for functions that take a law."""

    def __getattr__(self, name: str) -> float:
        try:
            return self[name]
        except KeyError as error:
            raise AttributeError(name) from error


def _function(subject: Any, purpose: str) -> ScalingFunction:
    found = scaling_function_of(purpose, subject.kind, subject.module)
    if found is None:
        raise MissingAbility(f"{subject.name} has no such function")
    return found


SCALING_ABILITIES = (_FitsScalingLaw, _FitsIsoFlops, _AllocatesCompute, _CountsTrainingFlops, _ReadsRuns)
