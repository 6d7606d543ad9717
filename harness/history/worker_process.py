"""Worker processes as the command sees them: started for each revision, sent requests, and called like work."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bench.work import Work
from harness.core.errors import HarnessError, MissingResource
from harness.history.jobs import Job, WorkerSettings
from harness.history.worker import worker_command

if TYPE_CHECKING:  # torch takes seconds to import, and the command line reads this module
    from torch import Tensor

# Idle OpenMP threads spin for a while, and would do so during the other revision's block: for 2.4 ms at most, measured
# as processor time of an idle process (libgomp, torch 2.13).
SETTLE_SECONDS = 0.005


class WorkerClock:
    """A clock that counts the seconds that the workers measured, and not those of sending requests."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the seconds measured so far."""
        return self.now


class WorkerProcess:
    """A revision's worker process. It ends when its standard input does, even if this process is killed."""

    def __init__(self, settings: WorkerSettings, folder: Path, scratch: Path) -> None:
        self._errors = (scratch / f"{time.monotonic_ns()}.stderr").open("w+", encoding="utf-8", errors="replace")
        # A session of its own: Ctrl-C is for this process, which then ends the workers in order.
        self._process = subprocess.Popen(
            worker_command(settings), cwd=folder, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def request(self, action: str, **details: Any) -> dict[str, Any]:
        """Send a request and return its answer.

        Raises MissingResource for something that is not available to the worker, and HarnessError for an error in it
        or for its death.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"action": action, **details}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            output = self._errors.read().strip()[-300:] or "without any output"
            raise HarnessError(f"the worker process died during '{action}': {output}")
        answer: dict[str, Any] = json.loads(line)
        if "missing" in answer:
            raise MissingResource(answer["missing"])
        if "error" in answer:
            raise HarnessError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # closes its pipes
            self._errors.close()


@contextlib.contextmanager
def start_workers(
    trees: Mapping[str, Path], settings: WorkerSettings, within: Path
) -> Iterator[dict[str, WorkerProcess]]:
    """Run a worker for each tree inside the block, in the tree's folder `within`; all import at the same time."""
    with tempfile.TemporaryDirectory(prefix="gpt-harness-") as scratch, contextlib.ExitStack() as stack:
        started = {}
        for name, tree in trees.items():
            folder = tree / within
            if not folder.is_dir():
                raise HarnessError(f"the {name} revision has no folder {within}")
            started[name] = WorkerProcess(dataclasses.replace(settings, tree=str(tree)), folder, Path(scratch))
            stack.callback(started[name].close)
        yield started


def remote_work(process: WorkerProcess, job: Job, clock: WorkerClock) -> Work:
    """Build a job in a worker and return its work; each call advances `clock` by the seconds measured in the worker."""
    built = process.request("build", **dataclasses.asdict(job))

    def call() -> None:
        clock.now += process.request("call")["seconds"]

    def prepare() -> None:
        started = time.perf_counter()
        time.sleep(SETTLE_SECONDS)
        process.request("prepare")
        clock.now += time.perf_counter() - started

    def answer() -> dict[str, Tensor]:
        from safetensors.torch import load_file  # imports torch

        with tempfile.TemporaryDirectory(prefix="gpt-harness-") as folder:
            path = Path(folder) / "answer.safetensors"
            process.request("answer", path=str(path))
            return load_file(path)

    return Work(call=call, answer=answer, prepare=prepare, tokens=built["tokens"], computes=built["computes"])
