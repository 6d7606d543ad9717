"""Answers by two processes: a forked one begins with the last question, while this one begins with the first.

On two cores both work at once. Whatever happens to the other process, no answer is lost: what it does not answer is
answered here.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from typing import Any

import torch

from harness.core.environment import cores
from harness.core.forked import end_with_parent
from harness.core.record_files import decode, encode

POLL = 0.5  # seconds between two looks at whether the other process still lives
FEWEST = 4  # questions for which a second process is worth its start
_FREE, _TAKEN = b"\0", b"\1"


def second_process(
    questions: Sequence[str], answer: Callable[[str], Any], patience: float | None
) -> SecondProcess | None:
    """Return a SecondProcess; None if there is one core only, or little to do, or no process to be had."""
    if cores() < 2 or len(questions) < FEWEST:
        return None
    try:
        return SecondProcess(questions, answer, patience=patience)
    except OSError:
        return None


class SecondProcess:
    """A process forked from this one that answers questions, the last first.

    Args:
        questions: what may be asked, each once.
        answer: returns the answer to one, as values that `encode` knows. What it raises ends the other process.
        patience: seconds that this process waits for one answer; None for ever.

    Raises:
        OSError: if there can be no other process.
    """

    def __init__(
        self, questions: Sequence[str], answer: Callable[[str], Any], *, patience: float | None = None
    ) -> None:
        self._numbers = {question: number for number, question in enumerate(questions)}
        self._answers: dict[int, Any] = {}
        self._patience, self._known = patience, 0  # bytes of the answers' file
        # One byte for each question, taken or not. A lock on it is released when its process ends, however it ends.
        self._taken = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._taken.write(_FREE * len(self._numbers))
        # Not the pipe, which is soon full: the other process would wait. A byte in the pipe is an answer in the file.
        self._written = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed by `close`
        self._read, write = os.pipe()
        try:
            self._process: int | None = os.fork()
        except OSError:
            os.close(write)
            self._process = None
            self.close()
            raise
        if self._process == 0:
            try:
                os.close(self._read)
                signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that asks
                end_with_parent()
                torch.set_num_threads(1)
                self._work(answer, write)
            finally:
                os._exit(0)
        os.close(write)

    def answer(self, question: str) -> Any | None:
        """Return the other process's answer, when it is there; None if the question is to be answered here."""
        number = self._numbers.get(question)
        if number in self._answers:
            return self._answers[number]
        if number is None or self._process is None or self._take(number):
            return None
        until = None if self._patience is None else time.monotonic() + self._patience
        while number not in self._answers and self._receive(until):
            pass
        return self._answers.get(number)

    def close(self) -> None:
        """End the other process."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGKILL)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(self._process, 0)
            self._process = None
        if not self._taken.closed:
            self._taken.close()
            self._written.close()
            os.close(self._read)

    def _work(self, answer: Callable[[str], Any], write: int) -> None:
        """Answer, in the other process, what this one has not taken. A process forked from that one must not go on."""
        process = os.getpid()
        for question, number in reversed(self._numbers.items()):
            if self._take(number):
                line = json.dumps(encode({"number": number, "answer": answer(question)}))
                if os.getpid() != process:
                    return
                self._written.write(line.encode() + b"\n")
                os.write(write, b".")

    def _take(self, number: int) -> bool:
        """Return True if nobody has taken the question before; from now on it is taken."""
        descriptor = self._taken.fileno()
        fcntl.lockf(descriptor, fcntl.LOCK_EX)
        try:
            free = os.pread(descriptor, 1, number) == _FREE
            os.pwrite(descriptor, _TAKEN, number)
        finally:
            fcntl.lockf(descriptor, fcntl.LOCK_UN)
        return free

    def _receive(self, until: float | None) -> bool:
        """Wait for a part of an answer. Return False if none will come: the process has ended, or takes too long."""
        while not connection.wait([self._read], POLL):
            # Asked, because a child of the other process may still have the pipe.
            if self._process is None or os.waitpid(self._process, os.WNOHANG)[0]:
                self._process = None
                break
            if until is not None and time.monotonic() > until:
                break
        else:
            if os.read(self._read, 1 << 16):
                self._store()
                return True
        self.close()
        return False

    def _store(self) -> None:
        """Read the answers that are new in the file."""
        size = os.fstat(self._written.fileno()).st_size
        text = os.pread(self._written.fileno(), size - self._known, self._known)
        text = text[: text.rfind(b"\n") + 1]
        self._known += len(text)
        for line in text.splitlines():
            row = decode(json.loads(line))
            self._answers[row["number"]] = row["answer"]
