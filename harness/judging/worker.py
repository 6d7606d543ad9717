"""The process of an isolated subject: reads questions as JSON lines from one pipe and answers on another.

`harness.judging.isolated` forks it, or starts it as `python -m harness.judging.worker MARK READ_FD WRITE_FD DUMP_FD`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from os import getpid  # the function itself: a subject may replace the one in `os`
from typing import Any

from harness.core.error_text import describe_error, describe_refusal, error_location
from harness.core.errors import SubjectError
from harness.core.forked import end_with_parent
from harness.core.limits import Limits, TooLong
from harness.core.marked_processes import kill_marked, mark_this_process
from harness.core.process_exit import UNFINISHED, ExitGuard
from harness.core.record_files import decode
from harness.core.resources import Resources
from harness.judging.envelope import Envelope
from harness.judging.in_process import InProcessJudge
from harness.measures.all_measures import measures
from harness.oracle.deviations import Deviation
from harness.oracle.hugging_face import load_installed
from harness.suites.check import Check
from harness.suites.record import Record


def serve(mark: str, read_from: int, write_to: int, dump: int) -> None:
    """Answer questions until the process that asks them ends; then end too, whatever the subject is doing.

    Args:
        mark: the mark of this process.
        read_from: the descriptor that questions come from.
        write_to: the descriptor that answers go to.
        dump: the descriptor that stacks are written to.
    """
    mark_this_process(mark)
    end_with_parent()
    for descriptor in (read_from, write_to, dump):
        os.set_inheritable(descriptor, False)  # a child process of the subject must not keep them open
    faulthandler.enable(dump, all_threads=False)
    faulthandler.register(signal.SIGUSR1, dump, all_threads=False)
    ExitGuard().install()
    questions: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=_read_questions, args=(read_from, questions, mark), daemon=True).start()
    answers = os.fdopen(write_to, "w", encoding="utf-8")
    worker, process = _Worker(), getpid()
    while True:
        question = questions.get()
        line = Envelope(question["number"], question["token"], process).sealed(_answer(worker, question))
        if getpid() != process:  # forked by the subject: it must neither answer nor go on
            os._exit(UNFINISHED)
        answers.write(line)
        answers.flush()


def _answer(worker: _Worker, question: Mapping[str, Any]) -> dict[str, Any]:
    """Return the answer, or what was raised in its place."""
    try:
        return worker.answer(question)
    except TooLong as late:
        return {"raised": f"no answer within the time limit: it was at {error_location(late)}"}
    except BaseException as error:
        return {"raised": describe_error(error)}


def _read_questions(descriptor: int, questions: queue.SimpleQueue[dict[str, Any]], mark: str) -> None:
    with os.fdopen(descriptor, encoding="utf-8") as lines:
        for line in lines:
            questions.put(decode(json.loads(line)))
    kill_marked(mark)  # the pipe is closed: the process that asks has ended
    os.killpg(0, signal.SIGKILL)


class _Worker:
    """Keeps the subject between two questions."""

    judge: InProcessJudge

    def answer(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Return the answer, ready for JSON."""
        if question["do"] == "start":
            return self._start(question)
        deviations = [Deviation.from_fields(each) for each in question.get("deviations", ())]
        if question["do"] == "read":
            return {"screen": self.judge.why_unreadable()}
        if question["do"] == "diagnose":
            return self.judge.diagnose(question["rows"], deviations)
        if question["do"] == "unfounded":
            return self.judge.unfounded(deviations)
        check = Check.from_fields(question["check"])
        try:
            judge = self.judge.judge_gpt2 if question["do"] == "judge GPT-2" else self.judge.judge
            return judge(check, Limits(**question["limits"]), deviations).as_row()
        except KeyboardInterrupt as raised:  # the subject raised it: this process is in no terminal's foreground
            return Record(check, self.judge.subject.name, "error", describe_error(raised), 0.0).as_row()

    def _start(self, question: Mapping[str, Any]) -> dict[str, Any]:
        sys.path[:] = question["path"]
        Resources.configure(**question["resources"])
        limits, echo, own = Limits(**question["limits"]), question["echo"], question["own"]
        try:
            self.judge = InProcessJudge(question["spec"], limits=limits, echo=echo, own=own)
        except SubjectError as error:
            return {"error": str(error)}
        except OSError as error:  # a path that is too long, or a folder that may not be entered
            return {"error": describe_refusal(error)}
        # Imported now, so that it does not count as the first check's time.
        measures()
        load_installed()
        return {}


if __name__ == "__main__":
    serve(sys.argv[1], *map(int, sys.argv[2:]))
