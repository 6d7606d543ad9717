"""A judge that has the subject in a process of its own, with limits of time and memory.

The subject may exit, crash, hang or grow: the check is then an error that says so, and the run continues. On Linux the
process is forked from this one, which has imported all that is needed and computed nothing: that takes no time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from multiprocessing import connection
from typing import IO, Any

import torch

from harness.core.devices import CPU
from harness.core.error_text import describe_exit, display_path, is_user_file
from harness.core.errors import SubjectError
from harness.core.forked import ForkedProcess, can_fork, threads_of_fork
from harness.core.limits import Limits, resident_bytes
from harness.core.marked_processes import kill_marked, new_mark
from harness.core.patience import Patience
from harness.core.record_files import Row, encode
from harness.core.resources import Resources
from harness.core.shipped_packages import HOME
from harness.judging.envelope import Envelope, NoAnswer
from harness.judging.worker import serve
from harness.measures.all_measures import measures
from harness.oracle.deviations import Deviation
from harness.oracle.hugging_face import load_installed
from harness.suites.check import Check
from harness.suites.record import Record

GRACE = 5.0  # seconds that the worker's own alarm has to end a check before the process is killed
POLL = 0.05  # seconds between two looks at its memory
START = 120.0  # seconds, at most, for a worker to import torch
ANSWER_OF_SIGNAL = 2.0  # seconds, at most, for a process to write where it is
PIECE = 1 << 16  # bytes that are read at once: the capacity of a pipe
LONGEST_ANSWER = 1 << 28  # bytes; a diagnosis, with the weights that reproduce it, has less than a hundredth


class WorkerEnded(Exception):  # noqa: N818 - says what the process did
    """The worker's process has ended, or is to end. The message says why, and at which line of the subject."""


class IsolatedJudge:
    """Judges a subject in a worker process. A worker that ends, hangs or grows too large costs one check.

    The next check starts another worker. The arguments are those of `InProcessJudge`.

    Raises:
        SubjectError: in one line, if the subject cannot be imported.
    """

    def __init__(self, spec: str, *, limits: Limits, echo: bool = False, own: bool = True) -> None:
        self.spec, self.limits, self.echo, self.own = spec, limits, echo, own
        self.forks = can_fork() and Resources.current.device == CPU  # CUDA does not work in a forked process
        self._mark = new_mark()
        self._worker: WorkerProcess | None = None
        try:
            self._ready()
        except WorkerEnded as ended:
            raise SubjectError(f"does not import: {ended}") from None

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """See `Judge.judge`."""
        return self._judged("judge", check, limits, deviations)

    def judge_gpt2(self, check: Check, limits: Limits, deviations: Sequence[Deviation]) -> Record:
        """See `Judge.judge_gpt2`."""
        return self._judged("judge GPT-2", check, limits, deviations)

    def _judged(self, do: str, check: Check, limits: Limits, deviations: Sequence[Deviation]) -> Record:
        started = time.perf_counter()
        question = {
            "do": do,
            "check": dataclasses.asdict(check),
            "limits": dataclasses.asdict(limits),
            "deviations": [dataclasses.asdict(each) for each in deviations],
        }
        try:
            record = Record.from_row(check, self._ask(question, limits))
            if "lost device" in record.details:
                self._end_worker()  # the next check starts another worker
            return record
        except WorkerEnded as ended:
            return Record(check, self.spec, "error", str(ended), time.perf_counter() - started)

    def diagnose(self, rows: Sequence[Row], deviations: Sequence[Deviation] = ()) -> Row:
        """See `Judge.diagnose`. Raises WorkerEnded if the process ends."""
        declared = [dataclasses.asdict(each) for each in deviations]
        return self._ask({"do": "diagnose", "rows": list(rows), "deviations": declared}, self.limits)

    def unfounded(self, deviations: Sequence[Deviation]) -> dict[str, str]:
        """See `Judge.unfounded`. Raises WorkerEnded if the process ends."""
        declared = [dataclasses.asdict(each) for each in deviations]
        return self._ask({"do": "unfounded", "deviations": declared}, self.limits)

    def why_unreadable(self) -> str:
        """See `Judge.why_unreadable`. A subject that ends the process is for its checks to report."""
        try:
            return str(self._ask({"do": "read"}, self.limits)["screen"])
        except WorkerEnded:
            return ""

    def close(self) -> None:
        """End every worker and every process that they started, also those of a process forked from this one."""
        self._end_worker()
        kill_marked(self._mark)

    def _end_worker(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def _ask(self, question: Mapping[str, Any], limits: Limits) -> dict[str, Any]:
        """Return the worker's answer. A worker that owes one, also after Ctrl-C, is ended."""
        worker = self._ready()
        try:
            return worker.ask(question, limits)
        except BaseException:
            self._end_worker()
            raise

    def _ready(self) -> WorkerProcess:
        if self._worker is not None and self._worker.owner != os.getpid():
            self._worker.leave()  # this process was forked: that worker answers the other one
            self._worker = None
        if self._worker is None:
            self._worker = WorkerProcess(f"{self._mark}-{new_mark()}", echo=self.echo, forks=self.forks)
            question = {
                "do": "start",
                "spec": self.spec,
                "limits": dataclasses.asdict(self.limits),
                "echo": self.echo,
                "own": self.own,
                "resources": dataclasses.asdict(Resources.current),
                "path": sys.path,
            }
            extra = START if self.limits.seconds is not None else 0.0
            try:
                answer = self._worker.ask(question, self.limits, extra=extra)
            except BaseException:
                self._end_worker()
                raise
            if "error" in answer:
                self._end_worker()
                raise SubjectError(answer["error"])
        return self._worker


class WorkerProcess:
    """The process and two pipes: questions go in and answers come out, as JSON lines. What it prints is on neither.

    Args:
        mark: the mark of the process and of those that it starts.
        echo: show what it prints.
        forks: fork the process from this one; otherwise start it anew, with torch to import.

    Attributes:
        owner: The process that asks it.
    """

    def __init__(self, mark: str, *, echo: bool, forks: bool) -> None:
        self.owner, self._mark = os.getpid(), mark
        to_worker, questions = os.pipe()
        answers, from_worker = os.pipe()
        self.dump: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `leave`
        self.printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `leave`
        passed = (to_worker, from_worker, self.dump.fileno())
        self.process = (_forked if forks else _started)(mark, passed, None if echo else self.printed.fileno())
        # Bytes that are not the subject's: what the process was forked with, after the imports that the first needs.
        self._shared = resident_bytes(os.getpid()) if forks else 0
        os.close(to_worker)
        os.close(from_worker)
        self.questions, self.answers = os.fdopen(questions, "w", encoding="utf-8"), answers
        self._read = bytearray()  # what has come of the next line
        self._token, self._asked = secrets.token_hex(16), 0

    def ask(self, question: Mapping[str, Any], limits: Limits, *, extra: float = 0.0) -> dict[str, Any]:
        """Return the worker's answer. Raises WorkerEnded if it died, hung, grew, raised, or sent something else."""
        self._asked += 1
        envelope = Envelope(self._asked, self._token, self.process.pid)
        question = {**question, "number": envelope.number, "token": envelope.token}
        try:
            self.questions.write(json.dumps(encode(question)) + "\n")
            self.questions.flush()
        except OSError:
            raise WorkerEnded(self._how_it_ended()) from None
        try:
            answer = envelope.opened(self._line(limits, extra))
        except NoAnswer as found:
            raise WorkerEnded(f"no verdict: {found}") from None
        if "raised" in answer:
            raise WorkerEnded(answer["raised"])
        return answer

    def _line(self, limits: Limits, extra: float) -> bytes:
        """Return the next line that the worker sends."""
        patience = None if limits.seconds is None else Patience(limits.seconds + GRACE + extra)
        while b"\n" not in self._read[-PIECE:]:
            if patience is not None and patience.is_over():
                raise WorkerEnded(f"did not answer within {limits.seconds:g} s{self._place()}")
            if len(self._read) > LONGEST_ANSWER:
                raise WorkerEnded(f"no verdict: more than {LONGEST_ANSWER:,} bytes came where an answer was expected")
            if connection.wait([self.answers], POLL):
                piece = os.read(self.answers, PIECE)
                if not piece:
                    raise WorkerEnded(self._how_it_ended())
                self._read += piece
            elif limits.memory_gib is not None and self._own_bytes() > limits.memory_gib * 2**30:
                raise WorkerEnded(f"exceeded {limits.memory_gib:g} GiB of memory{self._place()}")
            elif self.process.poll() is not None:  # a process that the subject forked still has the pipe
                raise WorkerEnded(self._how_it_ended())
        line, _, self._read = self._read.partition(b"\n")
        return bytes(line)

    def _own_bytes(self) -> int:
        return resident_bytes(self.process.pid) - self._shared

    def _place(self) -> str:
        """Return the line that the process is at. A signal asks for it, so it works inside a C function too."""
        until = time.monotonic() + ANSWER_OF_SIGNAL
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
            while not (place := self._from_dump()) and time.monotonic() < until:
                time.sleep(POLL)
            return place
        return self._from_dump()

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.poll()
        if code is None:
            return f"the process closed its pipes{self._from_dump()}"
        return f"{describe_exit(code)}{self._from_dump()}"

    def _from_dump(self) -> str:
        """Return the innermost line of the user's in the last dump of the stack."""
        self.dump.seek(0)
        text = self.dump.read().decode("utf-8", "replace")
        last = text.rpartition("(most recent call first)")[2]
        frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', last)
        for file, line, name in frames:
            if is_user_file(file):
                return f": it was at {display_path(file)}:{line} in {name}"
        return ""

    def end(self) -> None:
        """Kill the process and its children, also those in sessions of their own, and close the pipes."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        kill_marked(self._mark)
        self.process.wait()
        self.leave()

    def leave(self) -> None:
        """Close the pipes and files. The process ends once nobody else has the pipe of the questions."""
        with contextlib.suppress(OSError):
            self.questions.close()
        os.close(self.answers)
        self.dump.close()
        self.printed.close()


def _forked(mark: str, passed: tuple[int, int, int], output: int | None) -> ForkedProcess:
    """Return a worker that has what this process has imported, which the first one waits for."""
    measures()
    load_installed()
    threads = threads_of_fork()

    def work() -> None:
        torch.set_num_threads(threads)
        serve(mark, *passed)

    return ForkedProcess(work, passed=passed, output=output)


def _started(mark: str, passed: tuple[int, int, int], output: int | None) -> subprocess.Popen[bytes]:
    """Return a worker that imports everything itself."""
    return subprocess.Popen(
        # -P: do not import from the current folder, which may have a queue.py of the user.
        [sys.executable, "-P", "-m", "harness.judging.worker", mark, *map(str, passed)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))},
        pass_fds=passed,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C reaches the run alone, which then ends this process and its children
    )
