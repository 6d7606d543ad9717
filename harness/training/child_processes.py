"""The child processes of training programs, from the side of the harness: started, watched and ended."""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any

from harness.core.errors import SubjectError
from harness.core.limits import Limits, resident_bytes, written_bytes
from harness.core.shipped_packages import HOME
from harness.training.child.request import Request

POLL = 0.1  # seconds between two looks at their memory
GRACE = 20.0  # seconds that a process has after another of the same run has ended: ranks end together
MOST_WRITTEN_GIB = 16.0  # ten checkpoints of GPT-2 with AdamW's moments, or somebody's full disk
START = 120.0  # seconds, at most, for the server to import torch
ENVIRONMENT = {
    # Of the harness's models, a second thread slows each product down, and its sums are in another order each time.
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",  # the recorder sees nothing inside of compiled code
}


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status (negative: the signal), or the limit that ended it."""

    status: int
    limit: str = ""


class ChildProcesses:
    """A server process that has imported torch, and the processes that it forks. It is started when it is needed.

    `hash_seed`: what hash() of a text depends on, and so the order of a set. All processes of a server have the same.
    """

    def __init__(self, hash_seed: int = 1) -> None:
        self._hash_seed = str(hash_seed)
        self._server: subprocess.Popen[bytes] | None = None
        self._questions = self._answers = -1
        self._read = b""
        self._number = 0
        self._process = os.getpid()

    def run(self, requests: Sequence[Request], limits: Limits) -> list[Outcome]:
        """Run these requests at the same time and return how each ended. A process over its limits is killed."""
        self._start()
        numbers = {self._ask(request): place for place, request in enumerate(requests)}
        outcomes: dict[int, Outcome] = {}
        processes: dict[int, int] = {}
        over: dict[int, str] = {}
        started = time.monotonic()
        first_ended = math.inf
        try:
            while len(outcomes) < len(numbers):
                answer = self._answer(POLL)
                if "started" in answer:
                    processes[answer["started"]] = answer["process"]
                elif "ended" in answer:
                    number = answer["ended"]
                    outcomes[number] = Outcome(answer["status"], over.get(number, ""))
                    first_ended = min(first_ended, time.monotonic())
                for number in numbers.keys() - outcomes.keys() - over.keys():
                    limit = _exceeded(limits, time.monotonic() - started, processes.get(number))
                    if not limit and time.monotonic() - first_ended > GRACE:
                        limit = f"did not end within {GRACE:g} s of another rank"
                    if limit:
                        over[number] = limit
                        self._send({"kill": number})
        except BaseException:  # Ctrl-C, or the time limit of a check
            self.close()
            raise
        return [outcomes[number] for number in sorted(numbers, key=numbers.__getitem__)]

    def close(self) -> None:
        """End the server and every process that it started."""
        server, self._server = self._server, None
        if server is None or os.getpid() != self._process:  # a process that was forked from this one ends
            return
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):
                os.close(pipe)
        try:
            server.wait(5.0)  # it kills its processes when its pipe is closed
        except subprocess.TimeoutExpired:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
            server.wait()

    def _start(self) -> None:
        if self._server is not None and self._server.poll() is None:
            return
        read_from, self._questions = os.pipe()
        self._answers, write_to = os.pipe()
        self._read = b""
        path = os.pathsep.join([str(HOME), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._server = subprocess.Popen(
            [sys.executable, "-m", "harness.training.child", str(read_from), str(write_to)],
            pass_fds=(read_from, write_to),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=HOME,
            env={"PYTHONHASHSEED": self._hash_seed, **os.environ, **ENVIRONMENT, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C reaches the run alone, which then ends this process
        )
        os.close(read_from)
        os.close(write_to)
        if "ready" not in self._answer(START):
            self.close()
            raise SubjectError(f"the process that runs training programs did not start within {START:g} s")

    def _ask(self, request: Request) -> int:
        self._number += 1
        self._send({"number": self._number, "request": request.to_json()})
        return self._number

    def _send(self, question: dict[str, Any]) -> None:
        os.write(self._questions, (json.dumps(question) + "\n").encode())

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Return the next answer, or {} if there is none within the time. Raises SubjectError if the server ended."""
        until = time.monotonic() + seconds
        while b"\n" not in self._read:
            if not connection.wait([self._answers], max(0.0, until - time.monotonic())):
                return {}
            piece = os.read(self._answers, 1 << 16)
            if not piece:
                self.close()
                raise SubjectError("the process that runs training programs has ended (out of memory?); run it again")
            self._read += piece
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _exceeded(limits: Limits, seconds: float, process: int | None) -> str:
    """Return which limit a process exceeds, in words, or ""."""
    if limits.seconds is not None and seconds > limits.seconds:
        return f"did not end within {limits.seconds:g} s"
    if limits.memory_gib is not None and process and resident_bytes(process) > limits.memory_gib * 2**30:
        return f"exceeded {limits.memory_gib:g} GiB of memory"
    if process and written_bytes(process) > MOST_WRITTEN_GIB * 2**30:
        return f"wrote more than {MOST_WRITTEN_GIB:g} GiB to files"
    return ""


@functools.cache
def shared_processes(hash_seed: int = 1) -> ChildProcesses:
    """Return the processes that all programs of this process share; they end with it."""
    processes = ChildProcesses(hash_seed)
    atexit.register(processes.close)
    return processes


def environments_of_ranks(count: int) -> list[dict[str, str]]:
    """Return the environment of each rank, as torchrun sets it; one process alone has none."""
    if count == 1:
        return [{}]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "GROUP_RANK": "0",
    }
    return [{**common, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]
