"""A subject in a process of its own, with a limit of time and of memory: whatever it does, the run goes on."""

from __future__ import annotations

import contextlib
import dataclasses
import faulthandler
import importlib
import json
import os
import queue
import re
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any

from harness.core.error_text import describe_error, display_path, is_user_file
from harness.core.errors import SubjectError
from harness.core.limits import Limits, resident_bytes
from harness.core.process_exit import ExitGuard
from harness.core.record_files import decode, encode
from harness.core.resources import Resources
from harness.core.shipped_packages import HOME
from harness.judging.run_check import Record
from harness.oracle.deviations import Deviation

if TYPE_CHECKING:
    from harness.judging.runner import Row
    from harness.suites.suite_file import Check

GRACE = 5.0  # seconds for the worker's own alarm to end a check before the process is ended
POLL = 0.05  # seconds between two looks at its memory
START = 120.0  # seconds at the most for a worker to import torch


class WorkerEnded(Exception):  # noqa: N818 - says what the process did
    """The worker is no more; the message says how it ended, and where in the subject's code."""


class IsolatedJudge:
    """The subject in a worker process. A worker that ends, hangs or grows too large costs one check; a new one follows.

    Raises SubjectError, in one line, where the subject cannot be had.
    """

    def __init__(self, spec: str, *, limits: Limits, echo: bool = False, own: bool = True) -> None:
        self.spec, self.limits, self.echo, self.own = spec, limits, echo, own
        self._worker: WorkerProcess | None = None
        try:
            self._ready()
        except WorkerEnded as ended:
            raise SubjectError(f"does not import: {ended}") from None

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """See `Judge.judge`."""
        started = time.perf_counter()
        asked = {
            "do": "judge",
            "check": dataclasses.asdict(check),
            "limits": dataclasses.asdict(limits),
            "deviations": [dataclasses.asdict(each) for each in deviations],
        }
        try:
            return Record.of_row(check, self._ready().ask(asked, limits))
        except WorkerEnded as ended:
            self.close()
            return Record(check, self.spec, "error", str(ended), time.perf_counter() - started)

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """See `Judge.diagnose`. Raises WorkerEnded where the subject ends it."""
        return self._ready().ask({"do": "diagnose", "rows": list(rows)}, self.limits)

    def close(self) -> None:
        """End the worker and whatever it has started."""
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.end()

    def _ready(self) -> WorkerProcess:
        if self._worker is None:
            self._worker = WorkerProcess(echo=self.echo)
            resources = Resources.current
            asked = {
                "do": "start",
                "spec": self.spec,
                "limits": dataclasses.asdict(self.limits),
                "echo": self.echo,
                "own": self.own,
                "resources": {"text": resources.text, "pretrained": resources.pretrained},
                "path": sys.path,
            }
            extra = START if self.limits.seconds is not None else 0.0
            try:
                answer = self._worker.ask(asked, self.limits, extra=extra)
            except WorkerEnded:
                self.close()
                raise
            if "error" in answer:
                self.close()
                raise SubjectError(answer["error"])
        return self._worker


class WorkerProcess:
    """The process, and the two pipes to it: JSON lines go in, JSON lines come out; what it prints is on neither."""

    def __init__(self, *, echo: bool = False) -> None:
        to_worker, questions = os.pipe()
        answers, from_worker = os.pipe()
        self.dump: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        self.printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `end`
        passed = (to_worker, from_worker, self.dump.fileno())
        home = str(HOME)
        self.process = subprocess.Popen(
            # -P: a folder with a queue.py in it is no place to import from.
            [sys.executable, "-P", "-m", "harness.judging.isolated", *map(str, passed)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (home, os.environ.get("PYTHONPATH"))))},
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=None if echo else self.printed,
            stderr=None if echo else self.printed,
            start_new_session=True,  # Ctrl-C is for the run, which then ends this process and its children
        )
        os.close(to_worker)
        os.close(from_worker)
        self.questions, self.answers = os.fdopen(questions, "w", encoding="utf-8"), answers
        self._read = b""

    def ask(self, question: Mapping[str, Any], limits: Limits, *, extra: float = 0.0) -> dict[str, Any]:
        """The worker's answer. Raises WorkerEnded where there is none: it died, hung, or grew beyond its limit."""
        try:
            self.questions.write(json.dumps(encode(question)) + "\n")
            self.questions.flush()
        except OSError:
            raise WorkerEnded(self._how_it_ended()) from None
        started = time.monotonic()
        patience = None if limits.seconds is None else limits.seconds + GRACE + extra
        while b"\n" not in self._read:
            if select.select([self.answers], [], [], POLL)[0]:
                piece = os.read(self.answers, 1 << 20)
                if not piece:
                    raise WorkerEnded(self._how_it_ended())
                self._read += piece
            elif limits.memory_gib is not None and resident_bytes(self.process.pid) > limits.memory_gib * 2**30:
                raise WorkerEnded(f"exceeded {limits.memory_gib:g} GiB of memory{self._place()}")
            elif patience is not None and time.monotonic() - started > patience:
                raise WorkerEnded(f"did not answer within {limits.seconds:g} s{self._place()}")
        line, _, self._read = self._read.partition(b"\n")
        answer: dict[str, Any] = decode(json.loads(line))
        return answer

    def _place(self) -> str:
        """Where in the subject's code the process is, asked from outside: Python need not be running."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
            time.sleep(0.2)
        return self._from_dump()

    def _how_it_ended(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(GRACE)
        code = self.process.poll()
        if code is None:
            return f"the process closed its pipes{self._from_dump()}"
        if code >= 0:
            return f"the process exited with status {code}{self._from_dump()}"
        killed = " (out of memory, or killed from outside)" if code == -signal.SIGKILL else ""
        return f"the process ended with {signal.Signals(-code).name}{killed}{self._from_dump()}"

    def _from_dump(self) -> str:
        """The line in the subject's code that the last dump of the stack names first."""
        self.dump.seek(0)
        text = self.dump.read().decode("utf-8", "replace")
        last = text.rpartition("(most recent call first)")[2]
        frames = re.findall(r'File "(.+)", line (\d+) in (\S+)', last)
        for file, line, name in frames:
            if is_user_file(file):
                return f": it was at {display_path(file)}:{line} in {name}"
        return ""

    def end(self) -> None:
        """End the process, its children too, and close what is open."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with contextlib.suppress(OSError):
            self.questions.close()
        os.close(self.answers)
        self.dump.close()
        self.printed.close()


def main(arguments: Sequence[str]) -> None:
    """The worker: answer questions until there are no more. Ends with the process that asks, whatever it is doing."""
    asked_on, answers_on, dump = map(int, arguments)
    for number in (asked_on, answers_on, dump):
        os.set_inheritable(number, False)  # a child of the subject's must not keep them open
    faulthandler.enable(dump, all_threads=False)
    faulthandler.register(signal.SIGUSR1, dump, all_threads=False)
    ExitGuard().install()
    questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(asked_on, questions), daemon=True).start()
    answers = os.fdopen(answers_on, "w", encoding="utf-8")
    desk = _WorkerState()
    while True:
        answer = desk.answer(questions.get())
        answers.write(json.dumps(encode(answer)) + "\n")
        answers.flush()


def _listen(number: int, questions: queue.SimpleQueue[dict[str, Any]]) -> None:
    with os.fdopen(number, encoding="utf-8") as lines:
        for line in lines:
            questions.put(decode(json.loads(line)))
    os.killpg(0, signal.SIGKILL)  # whoever asked is gone


class _WorkerState:
    """Where the worker keeps the subject between two questions."""

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """One answer, as JSON carries it."""
        from harness.judging.runner import InProcessJudge
        from harness.suites.measure_registry import measures
        from harness.suites.suite_file import Check

        if question["do"] == "start":
            sys.path[:] = question["path"]
            Resources.configure(**question["resources"])
            try:
                limits = Limits(**question["limits"])
                self.here = InProcessJudge(question["spec"], limits=limits, echo=question["echo"], own=question["own"])
            except SubjectError as error:
                return {"error": str(error)}
            # What checks import on the way is not to count as the first one's time.
            measures()
            importlib.import_module("transformers.models.gpt2.modeling_gpt2")
            return {}
        if question["do"] == "diagnose":
            return self.here.diagnose(question["rows"])
        check = Check(**{**question["check"], "varying": tuple(question["check"]["varying"])})
        deviations = [Deviation(**{**each, "checks": tuple(each["checks"])}) for each in question["deviations"]]
        try:
            return self.here.judge(check, Limits(**question["limits"]), deviations).as_row()
        except KeyboardInterrupt as raised:  # nobody pressed it: this process is in no terminal's foreground
            return Record(check, self.here.subject.name, "error", describe_error(raised), 0.0).as_row()


if __name__ == "__main__":
    main(sys.argv[1:])
