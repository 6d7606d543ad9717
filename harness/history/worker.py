"""The worker process of one revision: the harness as it is now, with the subject as it was in that revision."""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from harness.core.environment import enable_huge_pages
from harness.core.errors import HarnessError, Missing
from harness.core.shipped_packages import HOME
from harness.history.jobs import Job, WorkerSettings

# torch takes seconds to import. The command line reads this module as well, and needs `worker_command` only, so that
# functions import torch.
if TYPE_CHECKING:
    from torch import Tensor

    from harness.bench.work import Work

# -P: the current folder belongs to the revision, and its copy of the harness must not be imported.
PROGRAM = (
    "import sys; sys.path.insert(0, sys.argv[1]); from harness.history.worker import serve; sys.path.pop(0); serve()"
)


def worker_command(settings: WorkerSettings) -> list[str]:
    """Return the command line that starts a worker."""
    return [sys.executable, "-P", "-c", PROGRAM, str(HOME), json.dumps(dataclasses.asdict(settings))]


def serve() -> None:
    """Answer requests, one JSON line each, until standard input ends.

    Answers go to standard output; what the subject prints is redirected to standard error.
    """
    settings = WorkerSettings(**json.loads(sys.argv[2]))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.insert(0, str(Path.cwd()))
    worker = Worker(settings)
    for line in sys.stdin:
        _send(answers, worker.answer(json.loads(line)))


def _send(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


class Worker:
    """Builds the work of one job at a time and calls it on request."""

    def __init__(self, settings: WorkerSettings) -> None:
        import torch  # now, while the other revision's process imports it as well

        self.settings = settings
        self.work: Work | None = None
        enable_huge_pages()
        if settings.threads:
            torch.set_num_threads(settings.threads)

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out a request and return its answer; an error is an answer, too."""
        try:
            answer: dict[str, Any] = getattr(self, f"do_{request.pop('action')}")(**request)
        except Missing as missing:
            return {"missing": str(missing)}
        except HarnessError as error:
            return {"error": str(error)}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {error}"}
        return answer

    def do_build(self, **job: Any) -> dict[str, Any]:
        """Build the work of a job, and free that of the job before."""
        self.work = None
        module, _, name = self.settings.build.partition(":")
        build: Callable[[WorkerSettings, Job], Work] = getattr(importlib.import_module(module), name)
        self.work = build(self.settings, Job(**job))
        return {"tokens": self.work.tokens, "computes": self.work.computes}

    def do_prepare(self) -> dict[str, Any]:
        """Do what the work needs before a block."""
        self._built.prepare()
        return {}

    def do_call(self) -> dict[str, Any]:
        """Make one call and return the seconds that it took."""
        call = self._built.call
        self._wait_for_device()
        started = time.perf_counter()
        call()
        self._wait_for_device()
        return {"seconds": time.perf_counter() - started}

    def do_answer(self, path: str) -> dict[str, Any]:
        """Write the answer's tensors to `path`, where they can be compared with the other revision's."""
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
    """Return the tensors of an answer: itself, or the fields of a dataclass; numbers become tensors."""
    import torch

    fields = vars(answer) if dataclasses.is_dataclass(answer) else {"answer": answer}
    found = {}
    for name, value in fields.items():
        if isinstance(value, int | float | list):
            found[name] = torch.tensor(value).reshape(-1)
        elif isinstance(value, torch.Tensor):
            found[name] = value.detach()
    return found
