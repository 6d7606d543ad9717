"""One revision's process: the harness as it is now around the subject as it was then, told what to do line by line."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.core.environment import ask_for_huge_pages
from harness.core.errors import HarnessError, Missing, SubjectError
from harness.core.record_files import place
from harness.core.shipped_packages import HOME
from harness.core.sizes import SIZES, Size

if TYPE_CHECKING:
    from torch import Tensor

    from harness.bench.arms.comparison_file import DeclaredComparison
    from harness.bench.comparison import Work
    from harness.subjects.model import Subject

# -P: the current folder, which is the revision's, must not have the harness looked for in it.
PROGRAM = "import sys; sys.path.insert(0, sys.argv[1]); from harness.history.bisect_worker import serve; sys.path.pop(0); serve()"
BUILD = "harness.history.bisect_worker:build_work"


@dataclass(frozen=True)
class Job:
    """One arm of one comparison at one point: the work that two revisions are to do."""

    comparison: str
    metric: str
    axis: str | None
    point: int | None
    arm: str

    @property
    def label(self) -> str:
        """`attention forward, tokens=512: flash`."""
        return f"{place(self.comparison, self.metric, self.axis, self.point)}: {self.arm}"


@dataclass(frozen=True)
class WorkerSettings:
    """What a worker is started with; `build` names the function that makes the work of a job."""

    tree: str
    subject: str
    size: str
    device: str = "cpu"
    threads: int | None = None
    quick: bool = False
    build: str = BUILD


def command(settings: WorkerSettings) -> list[str]:
    """The command line of a worker."""
    return [sys.executable, "-P", "-c", PROGRAM, str(HOME), json.dumps(dataclasses.asdict(settings))]


def serve() -> None:
    """Answer requests, one JSON line each, until there are no more; whatever the subject prints goes to stderr."""
    settings = WorkerSettings(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, str(Path.cwd()))
    worker = RevisionProcess(settings)
    for line in sys.stdin:
        _tell(answers, worker.answer(json.loads(line)))


def _tell(answers: TextIO, told: dict[str, Any]) -> None:
    answers.write(json.dumps(told) + "\n")
    answers.flush()


class RevisionProcess:
    """Holds the work of one job at a time."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch  # now, while the other revision's process imports it as well

        self.settings = settings
        self.work: Work | None = None
        ask_for_huge_pages()
        if settings.threads:
            torch.set_num_threads(settings.threads)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what a request says. What goes wrong is an answer, too."""
        try:
            told: dict[str, Any] = getattr(self, f"do_{request.pop('do')}")(**request)
        except Missing as missing:
            return {"missing": str(missing)}
        except HarnessError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return told

    def do_build(self, **job: Any) -> dict[str, Any]:
        """Build the work of a job; that of the job before is let go."""
        self.work = None
        module, _, name = self.settings.build.partition(":")
        build: Callable[[WorkerSettings, Job], Work] = getattr(importlib.import_module(module), name)
        self.work = build(self.settings, Job(**job))
        return {"tokens": self.work.tokens, "computes": self.work.computes}

    def do_prepare(self) -> dict[str, Any]:
        """What comes before a block."""
        self._built.prepare()
        return {}

    def do_call(self) -> dict[str, Any]:
        """One call, and the seconds that it took."""
        call = self._built.call
        self._wait_for_device()
        begun = time.perf_counter()
        call()
        self._wait_for_device()
        return {"seconds": time.perf_counter() - begun}

    def do_answer(self, path: str) -> dict[str, Any]:
        """Write the answer's tensors where the other revision's can be held against them."""
        from safetensors.torch import save_file

        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors(self._built.answer()).items()}, path)
        return {}

    @property
    def _built(self) -> Work:
        assert self.work is not None, "build comes first"
        return self.work

    def _wait_for_device(self) -> None:
        import torch

        if torch.device(self.settings.device).type == "cuda":
            torch.cuda.synchronize(self.settings.device)


def tensors(answer: Any) -> dict[str, Tensor]:
    """The tensors of an answer: itself, or the fields of a dataclass; numbers become tensors."""
    import torch

    fields = vars(answer) if dataclasses.is_dataclass(answer) else {"answer": answer}
    found = {}
    for name, value in fields.items():
        if isinstance(value, int | float | list):
            found[name] = torch.tensor(value).reshape(-1)
        elif isinstance(value, torch.Tensor):
            found[name] = value.detach()
    return found


def check_origin(settings: WorkerSettings) -> None:
    """Raise SubjectError if the subject's module is not the revision's: two revisions would be the same code."""
    where = settings.subject.rpartition(":")[0]
    file = where if where.endswith(".py") else getattr(sys.modules.get(where), "__file__", None)
    if file is None or not Path(file).resolve().is_relative_to(Path(settings.tree).resolve()):
        raise SubjectError(
            f"{settings.subject} was found in {file}, not in the revision: expected a subject of this repository"
        )


# The one place that knows where comparisons come from.


def jobs(size: Size, *, quick: bool = False) -> list[Job]:
    """Every arm of the shipped comparisons that the subject has a part in, at every point."""
    from harness.bench.arms.registry import arm_specs

    return [
        Job(declared.suite, declared.name, declared.axis and declared.axis.replace("_", " "), point, arm)
        for declared in _declared()
        for point in declared.fitting(size, quick=quick)
        for arm in declared.arms
        if arm_specs()[arm].peer is None
    ]


def build_work(settings: WorkerSettings, job: Job) -> Work:
    """The work of a job around the subject that the current folder holds."""
    from harness.bench.arms.model_pool import ModelPool

    pool = ModelPool(_subject(settings), SIZES[settings.size], settings.device)
    declared = next(one for one in _declared() if (one.suite, one.name) == (job.comparison, job.metric))
    arms = {arm.name: arm for arm in declared.at(pool, job.point, twin=False).arms}
    return arms[job.arm].build()


def _declared() -> list[DeclaredComparison]:
    from harness.bench.arms.comparison_file import read_comparisons

    return read_comparisons(HOME / "benchmarks")


@functools.cache
def _subject(settings: WorkerSettings) -> Subject:
    from harness.subjects.adapters import adapt

    subject = adapt(settings.subject)
    check_origin(settings)
    return subject
