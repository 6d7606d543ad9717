"""Ranks that stay, and do what they are asked again and again: for work that is timed."""

from __future__ import annotations

import contextlib
import os
import signal
import time
import weakref
from collections.abc import Callable, Mapping
from multiprocessing import connection

import torch

from harness.core.error_text import describe_error
from harness.core.errors import SubjectError
from harness.core.forked import end_with_parent
from harness.core.patience import Patience
from harness.core.rank_processes import GRACE, Answer, Place, first_cause, free_port, joined, prepare, store_answer
from harness.core.seeds import seed_torch
from harness.core.shared_folder import SharedFolder

SECONDS = 300.0  # for one command
POLL = 0.05  # seconds between two looks at the time

Commands = Mapping[str, Callable[[], Answer | None]]


class RankServer:
    """Forked ranks that wait for a command, do it together, and answer.

    `make` is called on each rank, and returns what each command does; an answer of None is no more than "done". The
    ranks end with this object, and with this process.

    Raises MissingResource if there can be no ranks here.
    """

    def __init__(self, make: Callable[[Place], Commands], *, ranks: int, seconds: float = SECONDS) -> None:
        prepare()
        self.ranks, self.seconds = ranks, seconds
        self._shared = SharedFolder()
        self.folder = self._shared.path
        self._asks: list[int] = []
        self._answers: list[int] = []
        processes: list[int] = []
        self.close = weakref.finalize(self, _end, os.getpid(), processes, self._asks, self._answers, self._shared)
        port = free_port()
        try:
            for rank in range(ranks):
                processes.append(self._started(make, Place(rank, ranks, self.folder), port))
        except BaseException:  # such as "Resource temporarily unavailable", or Ctrl-C
            self.close()
            raise

    def _started(self, make: Callable[[Place], Commands], place: Place, port: int) -> int:
        """Fork a rank, and return its process."""
        (command, ask), (answer, done) = os.pipe(), os.pipe()
        self._asks.append(ask)
        self._answers.append(answer)
        try:
            process = os.fork()
            if process == 0:
                try:
                    for descriptor in (*self._asks, *self._answers):  # else no rank sees that the asking process ended
                        os.close(descriptor)
                    _serve(make, place, command, done, port)
                finally:
                    os._exit(0)
        finally:
            os.close(command)
            os.close(done)
        return process

    def ask(self, command: str) -> list[Answer]:
        """Have every rank do a command; return the answers of those that gave one.

        Raises SubjectError if one fails, or gives no answer in time. The ranks are ended then.
        """
        if not self.close.alive:
            raise SubjectError(f"asked to {command}: the ranks were ended, by `close` or after an error before")
        for ask in self._asks:
            with contextlib.suppress(BrokenPipeError):
                os.write(ask, f"{command}\n".encode())
        for rank, answer in enumerate(self._answers):
            patience = Patience(self.seconds)
            while not connection.wait([answer], POLL):
                if patience.is_over():
                    self.close()
                    raise SubjectError(f"rank {rank}, asked to {command}: no answer in time")
            if os.read(answer, 1) != b".":
                error = self._error(rank)
                self.close()
                raise SubjectError(f"asked to {command}, {error}")
        files = [self.folder / f"{command}.{rank}.pt" for rank in range(self.ranks)]
        return [torch.load(file, weights_only=True) for file in files if file.exists()]

    def _error(self, rank: int) -> str:
        """Return the error of the ranks, of which `rank` has one."""
        time.sleep(GRACE)  # in which the others raise, too
        found = {}
        for each in range(self.ranks):
            with contextlib.suppress(OSError):
                found[each] = (self.folder / f"error.{each}").read_text(encoding="utf-8")
        first = first_cause(found) if found else rank
        return f"rank {first}: {found.get(first, 'its process has ended')}"


def _serve(make: Callable[[Place], Commands], place: Place, command: int, done: int, port: int) -> None:
    """Be a rank that does commands until the process that asks has gone."""
    end_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        torch.set_num_threads(1)
        with joined(place, place.folder, port), os.fdopen(command, encoding="utf-8") as commands:
            seed_torch(0)
            known = make(place)
            for line in commands:
                answer = known[line.strip()]()
                if answer is not None:
                    store_answer(answer, place.folder / f"{line.strip()}.{place.rank}.pt")
                os.write(done, b".")
            os._exit(0)
    except BaseException as error:  # a subject may raise anything
        (place.folder / f"error.{place.rank}").write_text(describe_error(error), encoding="utf-8")
        os.write(done, b"!")


def _end(owner: int, processes: list[int], asks: list[int], answers: list[int], folder: SharedFolder) -> None:
    if os.getpid() != owner:
        return
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(process, 0)
    for descriptor in (*asks, *answers):
        with contextlib.suppress(OSError):
            os.close(descriptor)
    folder.remove()
