"""A server that forks a process for each run of a training program: `python -m harness.training.child READ WRITE`.

It imports torch once, which takes seconds, and runs nothing itself: it has no threads, so that a fork of it is safe.
Requests come as JSON lines from one pipe, and what happens to their processes is answered on another.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from pathlib import Path
from typing import Any

import numpy as np
import torch._dynamo  # noqa: F401 - the first optimizer imports it, which takes seconds

from harness.core.forked import end_with_parent
from harness.training.child.request import PRINTED, Request
from harness.training.child.run import run

POLL = 0.01  # seconds between two looks at the child processes


class Server:
    """The child processes that are running, by the number of their request."""

    def __init__(self, read_from: int, write_to: int) -> None:
        self.read_from, self.write_to = read_from, write_to
        self.running: dict[int, int] = {}  # process -> number

    def serve(self) -> None:
        """Answer requests until the pipe is closed; then kill what is running."""
        self._answer({"ready": os.getpid()})
        read = b""
        while True:
            if connection.wait([self.read_from], POLL if self.running else None):
                piece = os.read(self.read_from, 1 << 16)
                if not piece:
                    break
                *lines, read = (read + piece).split(b"\n")
                for line in lines:
                    self._do(json.loads(line))
            self._reap()
        for process in self.running:
            _kill(process)

    def _do(self, question: Mapping[str, Any]) -> None:
        if "kill" in question:
            for process, number in self.running.items():
                if number == question["kill"]:
                    _kill(process)
            return
        process = os.fork()
        if process == 0:
            _be_a_child(Request.from_json(question["request"]), (self.read_from, self.write_to))
        self.running[process] = question["number"]
        self._answer({"started": question["number"], "process": process})

    def _reap(self) -> None:
        for process in list(self.running):
            ended, status = os.waitpid(process, os.WNOHANG)
            if ended:
                _kill(process)  # what it started and left behind
                self._answer({"ended": self.running.pop(process), "status": os.waitstatus_to_exitcode(status)})

    def _answer(self, answer: Mapping[str, Any]) -> None:
        os.write(self.write_to, (json.dumps(answer) + "\n").encode())


def _be_a_child(request: Request, pipes: Sequence[int]) -> None:
    """Run a request in this process, which has just been forked, and end it."""
    status = 1
    try:
        os.setsid()
        end_with_parent()
        for pipe in pipes:
            os.close(pipe)
        _redirect(Path(request.folder) / PRINTED)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
        random.seed()  # as in a new process; torch's generator has a constant seed there
        np.random.seed()
        run(request)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(status)


def _redirect(printed: Path) -> None:
    """Read nothing from standard input, and write standard output and error to a file, line by line."""
    nothing, file = os.open(os.devnull, os.O_RDONLY), os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(nothing, 0)
    os.dup2(file, 1)
    os.dup2(file, 2)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # a TextIOWrapper in a new process


def _kill(group: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    Server(*map(int, sys.argv[1:3])).serve()
