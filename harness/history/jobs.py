"""Jobs: arms of the shipped comparisons that two revisions of a subject can both run, and how a worker builds them."""

from __future__ import annotations

import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import SubjectError
from harness.core.record_files import comparison_label
from harness.core.shipped_packages import HOME
from harness.core.sizes import SIZES, Size

# The arms import torch, which takes seconds. The command line reads this module before it needs them, so that functions
# import them.
if TYPE_CHECKING:
    from harness.bench.arms.declared_comparison import DeclaredComparison
    from harness.bench.work import Work
    from harness.subjects.protocols import Subject

BUILD = "harness.history.jobs:build_work"


@dataclass(frozen=True)
class Job:
    """One arm of one comparison at one point: the work that two revisions both do."""

    comparison: str
    metric: str
    axis: str | None
    point: int | None
    arm: str

    @property
    def label(self) -> str:
        """`attention forward, tokens=512: flash`."""
        return f"{comparison_label(self.comparison, self.metric, self.axis, self.point)}: {self.arm}"


@dataclass(frozen=True)
class WorkerSettings:
    """The settings that a worker process starts with; `build` names the function that builds the work of a job."""

    tree: str
    subject: str
    size: str
    device: str = "cpu"
    threads: int | None = None
    quick: bool = False
    build: str = BUILD


def list_jobs(size: Size, *, quick: bool = False) -> list[Job]:
    """Return every arm of the shipped comparisons that runs the subject, at every point."""
    from harness.bench.arms.all_arms import arm_specs

    return [
        Job(declared.suite, declared.name, declared.axis and declared.axis.replace("_", " "), point, arm)
        for declared in _shipped_comparisons()
        for point in declared.points_for(size, quick=quick)
        for arm in declared.arms
        if arm_specs()[arm].peer is None
    ]


def build_work(settings: WorkerSettings, job: Job) -> Work:
    """Build the work of a job with the subject of the current folder."""
    from harness.bench.arms.model_pool import ModelPool

    pool = ModelPool(_subject(settings), SIZES[settings.size], settings.device)
    declared = next(one for one in _shipped_comparisons() if (one.suite, one.name) == (job.comparison, job.metric))
    arms = {arm.name: arm for arm in declared.at(pool, job.point, twin=False).arms}
    return arms[job.arm].build()


def _shipped_comparisons() -> list[DeclaredComparison]:
    from harness.bench.arms.comparison_file import read_comparisons

    return read_comparisons(HOME / "benchmarks")


@functools.cache
def _subject(settings: WorkerSettings) -> Subject:
    from harness.subjects.adapters import adapt

    subject = adapt(settings.subject)
    check_origin(settings)
    return subject


def check_origin(settings: WorkerSettings) -> None:
    """Raise SubjectError unless the subject's file is the revision's.

    Otherwise both revisions would run the same code, and always be equally fast.
    """
    location = settings.subject.rpartition(":")[0]
    file = location if location.endswith(".py") else getattr(sys.modules.get(location), "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(Path(settings.tree).resolve()):
        raise SubjectError(
            f"{settings.subject} was found in {file}, not in the revision: expected a subject of this repository"
        )
