"""Questions answered by several processes that talk to one another, as torchrun starts them: on CPUs, through gloo.

The ranks are forked from this process, which costs 0.1 s where starting Python with torch costs 5. They answer one
question after the other. If a rank fails, hangs or ends, that question is a failure, with the line where it was; new
ranks answer the questions after it.
"""

from __future__ import annotations

import contextlib
import faulthandler
import functools
import inspect
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import torch

from harness.core.captured_output import shorten
from harness.core.error_text import describe_error, describe_exit, display_path, is_user_file
from harness.core.errors import MissingResource
from harness.core.forked import end_with_parent
from harness.core.patience import Patience
from harness.core.seeds import seed_torch

SECONDS = 20.0  # for one question, which takes up to half a second: a rank that waits longer waits for ever
GRACE = 0.5  # seconds in which the others, too, may raise after one has: the first cause is then known
POLL = 0.002
LOOPBACK = ("lo", "lo0")

Answer = Mapping[str, Any]  # tensors, numbers, texts, and lists and dicts of them: what torch.load reads unpickled
Question = Callable[["Place"], Answer]


@dataclass(frozen=True)
class Place:
    """The place of a rank among the ranks, and a folder that all of them see."""

    rank: int
    ranks: int
    folder: Path


@dataclass(frozen=True)
class Failure:
    """Why a question has no answer: what happened on which rank, at which line of the user's, and what was printed."""

    what: str
    line: tuple[str, int] | None = None
    output: str = ""


@dataclass
class Answers:
    """The answers to each question, in the order of the ranks, and the failures."""

    given: dict[str, list[Answer]] = field(default_factory=dict)
    failed: dict[str, Failure] = field(default_factory=dict)


def answers_of_ranks(
    questions: Mapping[str, Question], *, ranks: int, folder: Path, seconds: float = SECONDS
) -> Answers:
    """Return what `ranks` processes answer to each question, asked in order.

    Args:
        questions: what every rank does; each returns its answer.
        folder: for the files of the answers; it must be there, and be used for one call.
        seconds: the longest time for one question.

    Raises:
        MissingResource: torch has no gloo here, or the system cannot fork.
    """
    _require_ranks()
    found, remaining = Answers(), dict(questions)
    while remaining:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            group = _Group(remaining, ranks, folder, Path(own))
            try:
                group.collect(found, seconds)
            finally:
                group.end()
        remaining = {
            name: each for name, each in remaining.items() if name not in found.given and name not in found.failed
        }
    return found


def prepare() -> None:
    """Import what wrappers import: once here, and not in each rank, where it takes 1.2 s.

    Raises MissingResource if torch has no gloo here, or the system cannot fork.
    """
    _require_ranks()
    import torch._dynamo
    import torch.distributed.fsdp
    import torch.distributed.tensor.parallel  # noqa: F401 - imported for the ranks


def _require_ranks() -> None:
    import torch.distributed as dist  # here to save start-up time

    if not (dist.is_available() and dist.is_gloo_available() and hasattr(os, "fork")):
        raise MissingResource("several ranks need torch.distributed with gloo, and a system that can fork")


class _Group:
    """Forked ranks that answer questions until one of them fails."""

    def __init__(self, questions: Mapping[str, Question], ranks: int, shared: Path, folder: Path) -> None:
        self.questions, self.ranks, self.folder = questions, ranks, folder
        self.processes: dict[int, int] = {}  # of the ranks that run
        self.ended: dict[int, int] = {}  # their status
        sys.stdout.flush()
        sys.stderr.flush()
        port = free_port()
        try:
            for rank in range(ranks):
                process = os.fork()
                if process == 0:
                    try:
                        _work(questions, Place(rank, ranks, shared), folder, port)
                    finally:
                        os._exit(0)
                self.processes[rank] = process
        except BaseException:  # such as "Resource temporarily unavailable", or Ctrl-C
            self.end()
            raise

    def collect(self, found: Answers, seconds: float) -> None:
        """Wait for the answers, and put them into `found`; return at the first failure."""
        for name in self.questions:
            patience = Patience(seconds)
            while not self._is_answered(name):
                if (failure := self._failure(name, patience)) is not None:
                    found.failed[name] = failure
                    return
                time.sleep(POLL)
            found.given[name] = [torch.load(self._file(name, rank), weights_only=True) for rank in range(self.ranks)]

    def end(self) -> None:
        """End the ranks that still run."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        for process in self.processes.values():
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, 0)
        self.processes.clear()

    def _is_answered(self, name: str) -> bool:
        return all(self._file(name, rank).exists() for rank in range(self.ranks))

    def _file(self, name: str, rank: int) -> Path:
        return self.folder / f"{list(self.questions).index(name)}.{rank}.pt"

    def _failure(self, name: str, patience: Patience) -> Failure | None:
        """Return why no answer to `name` will come; None if one may."""
        for rank, process in list(self.processes.items()):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                del self.processes[rank]
                self.ended[rank] = os.waitstatus_to_exitcode(status)
        errors = [rank for rank in range(self.ranks) if self._error_file(rank).exists()]
        if errors:
            time.sleep(GRACE)
            return self._raised()
        gone = [rank for rank in self.ended if not self._file(name, rank).exists()]
        if gone:
            return Failure(f"rank {gone[0]}: {describe_exit(self.ended[gone[0]])}", output=self._output(gone[0]))
        return self._hung(name) if patience.is_over() else None

    def _raised(self) -> Failure:
        """Return the failure of the ranks that raised: of the first one whose error is not that another rank left."""
        errors = {
            rank: json.loads(self._error_file(rank).read_text(encoding="utf-8"))
            for rank in range(self.ranks)
            if self._error_file(rank).exists()
        }
        rank = first_cause({rank: error["what"] for rank, error in errors.items()})
        same = len(errors) == self.ranks and len({each["what"] for each in errors.values()}) == 1
        who = "every rank" if same else f"rank {rank}"
        line = errors[rank]["line"]
        return Failure(f"{who}: {errors[rank]['what']}", (line[0], line[1]) if line else None, self._output(rank))

    def _hung(self, name: str) -> Failure:
        """Return the failure of ranks that wait for ever, with the line at which each is."""
        waiting = [rank for rank in self.processes if not self._file(name, rank).exists()]
        for rank in waiting:
            os.kill(self.processes[rank], signal.SIGUSR1)  # writes the stack, see `_work`
        time.sleep(GRACE)
        lines = {rank: _line_of_stack(self.folder / f"stack.{rank}") for rank in waiting}
        places = [f"rank {rank} at {display_path(line[0])}:{line[1]}" for rank, line in lines.items() if line]
        done = [f"rank {rank} was done" for rank in range(self.ranks) if rank not in waiting]
        what = f"no answer in time, as when not all ranks take part in a collective: {'; '.join([*places, *done])}"
        return Failure(what, next((line for line in lines.values() if line), None), self._output(waiting[0]))

    def _error_file(self, rank: int) -> Path:
        return self.folder / f"error.{rank}"

    def _output(self, rank: int) -> str:
        with contextlib.suppress(OSError):
            return shorten((self.folder / f"output.{rank}").read_text(encoding="utf-8", errors="replace"))
        return ""


def first_cause(errors: Mapping[int, str]) -> int:
    """Return the rank whose error is not that another rank has left."""
    return min(errors, key=lambda rank: ("Connection" in errors[rank], rank))


def _work(questions: Mapping[str, Question], place: Place, folder: Path, port: int) -> None:
    """Be a rank: answer all questions, each into a file; an error is a file, too, and ends the rank."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
    signal.setitimer(signal.ITIMER_REAL, 0)
    descriptor = os.open(folder / f"output.{place.rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - until the rank ends
    stack: TextIO = open(folder / f"stack.{place.rank}", "w", encoding="utf-8")  # noqa: SIM115 - likewise
    faulthandler.register(signal.SIGUSR1, file=stack, all_threads=False)
    try:
        torch.set_num_threads(1)
        with joined(place, folder, port):
            for number, question in enumerate(questions.values()):
                seed_torch(0)
                store_answer(question(place), folder / f"{number}.{place.rank}.pt")
                # Not by a collective: that of a rank that has skipped one would be taken for the one that it skipped.
                while not all((folder / f"{number}.{rank}.pt").exists() for rank in range(place.ranks)):
                    time.sleep(POLL)
    except BaseException as error:  # a subject may raise anything, SystemExit too
        frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_file(f.filename)]
        line = [frames[-1].filename, frames[-1].lineno] if frames else None
        text = json.dumps({"what": describe_error(error), "line": line})
        _write(folder / f"error.{place.rank}", lambda path: path.write_text(text, encoding="utf-8"))
    finally:
        sys.stdout.flush()


@contextlib.contextmanager
def joined(place: Place, folder: Path, port: int) -> Iterator[None]:
    """Join the ranks, with the environment that torchrun gives; a program's own call to join does nothing more."""
    import torch.distributed as dist

    interface = next((name for _, name in socket.if_nameindex() if name in LOOPBACK), None)
    os.environ |= {
        "RANK": str(place.rank),
        "LOCAL_RANK": str(place.rank),
        "WORLD_SIZE": str(place.ranks),
        "LOCAL_WORLD_SIZE": str(place.ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        **({"GLOO_SOCKET_IFNAME": interface} if interface else {}),
    }
    meeting = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=meeting, rank=place.rank, world_size=place.ranks)
    for function in (dist.init_process_group, dist.destroy_process_group):
        # Its code, not its name in torch: a program may have imported the function. The process is forked for one rank.
        inspect.unwrap(function).__code__ = _nothing.__code__
    _let_replicas_be_on_cpus()
    yield
    dist.barrier()  # no rank leaves before the others are done with it


def _nothing(*_: object, **__: object) -> None:
    """Do nothing, for a program that joins or leaves the ranks itself."""


def _let_replicas_be_on_cpus() -> None:
    """Have DistributedDataParallel ignore the GPU that programs name, `device_ids=[rank]`, if the module is on CPUs."""
    from torch.nn.parallel import DistributedDataParallel

    make = DistributedDataParallel.__init__

    @functools.wraps(make)
    def make_there(
        self: Any, module: torch.nn.Module, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any
    ) -> None:
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            device_ids = output_device = None
        make(self, module, device_ids, output_device, *args, **kwargs)

    DistributedDataParallel.__init__ = make_there  # type: ignore[method-assign]  # in this process alone


def store_answer(answer: Answer, path: Path) -> None:
    """Write an answer to a file that is there only when it is complete."""
    _write(path, lambda part: torch.save(dict(answer), part))


def _write(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file that is there only when it is complete."""
    part = path.with_name(path.name + ".part")
    write(part)
    part.replace(path)


def _line_of_stack(path: Path) -> tuple[str, int] | None:
    """Return the innermost line of the user's in a stack that faulthandler wrote."""
    with contextlib.suppress(OSError):
        lines = re.findall(r'File "(.+)", line (\d+)', path.read_text(encoding="utf-8", errors="replace"))
        return next(((file, int(number)) for file, number in lines if is_user_file(file)), None)
    return None


def free_port() -> int:
    """Return a port of this machine that nobody uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
