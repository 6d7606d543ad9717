"""Run a suite's checks on one subject: skip what is hopeless, and take declared deviations into account."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.core.devices import CPU
from harness.core.error_text import describe_error, error_location
from harness.core.limits import MEMORY_SHARE, SECONDS, Limits, TooLong, machine_memory_gib
from harness.core.record_files import Row
from harness.core.resources import Resources
from harness.core.second_process import SecondProcess, second_process
from harness.core.sizes import SIZES
from harness.judging.excused import details_with, excused
from harness.judging.explained import explained
from harness.judging.in_process import PROBE_SECONDS, InProcessJudge
from harness.judging.isolated import IsolatedJudge, WorkerEnded
from harness.judging.judge import Judge
from harness.judging.run_check import is_small
from harness.measures.all_measures import measures
from harness.oracle.deviations import Deviation, declared_faults
from harness.oracle.hugging_face import load_installed
from harness.suites.check import Check
from harness.suites.record import Record

# Of a check with the deviations declared. A skip: with these, Hugging Face's GPT-2 can do nothing that is comparable.
EXPLAINED = ("pass", "skip")
UNUSABLE = "not run: it cannot be built and called"


class Runner:
    """Runs checks on one subject.

    After an error it finds out if the subject can be built and called at all. If not, the checks that follow are errors
    of one line, and are not run. A measure that hung once is not run again at the same size.

    With `two_processes` it forks a second process for what is small: see `harness.core.second_process`.
    """

    def __init__(
        self,
        name: str,
        judge: Judge,
        *,
        limits: Limits,
        deviations: Sequence[Deviation] = (),
        two_processes: bool = False,
    ) -> None:
        self.name, self.judge, self.limits, self.deviations = name, judge, limits, deviations
        self.two_processes = two_processes
        self._unusable: dict[str, str] = {}  # size -> why; empty if the subject can be built and called
        self._hung: dict[tuple[str, str], str] = {}  # (measure, size) -> why it is not run again
        self._needed: dict[tuple[str, str], list[Deviation]] = {}  # by measure and what it compares
        self._ahead: SecondProcess | None = None

    def run_ahead(self, checks: Sequence[Check]) -> None:
        """Have a second process run the last of the small checks, while `run` runs the first, if it may be forked.

        Not if deviations are declared: which of them a check needs is found by the first check of its kind.
        """
        small = {_id_of(check): check for check in checks if is_small(check)}
        if not self.two_processes or any(each.computed for each in self.deviations):
            return
        measures()  # imported once, for both
        load_installed()
        patience = None if self.limits.seconds is None else 2 * self.limits.seconds  # a check, and a probe after it
        self._ahead = second_process(list(small), lambda each: self.run(small[each]).as_row(), patience)

    def run(self, check: Check) -> Record:
        """Return the record of one check. A failure that a declared deviation explains is marked as declared."""
        size = str(check.parameters.get("size") or "debug")
        because = self._unusable.get(size) or self._hung.get((check.measure, size))
        if because:
            record = Record(check, self.name, "error", because, 0.0, details={"because": because})
            return record if self._unusable.get(size) else excused(record, self.deviations) or record
        row = self._ahead.answer(_id_of(check)) if self._ahead is not None else None
        if row is not None and row["message"].startswith(UNUSABLE):
            row = None  # the second process was quicker: in this one the first such check says in full what was raised
        record = self.judge.judge(check, self.limits) if row is None else Record.from_row(check, row)
        if record.verdict == "error":
            self._probe(check, record, size)
        if row is None and record.verdict in ("fail", "error") and self.deviations and not self._unusable.get(size):
            record = excused(record, self.deviations) or self._computed(check, record)
        return record

    def _probe(self, check: Check, record: Record, size: str) -> None:
        """After an error, find out if the subject can be built and called at this size."""
        name = f"{check.suite}/{check.id}"
        if "did not answer within" in record.message:
            self._hung[check.measure, size] = f"not run: {check.measure} hung before; see {name}"
        if size in self._unusable or size not in SIZES or SIZES[size].width > SIZES["124M"].width:
            return
        seconds = min(self.limits.seconds or PROBE_SECONDS, PROBE_SECONDS)
        # What has no loss, or one that fails, has logits that can be judged.
        call = {"size": size, "loss": False}
        probe = Check("behaviour", "builds-and-answers", "answers", call, (), {"equals": True}, "", "")
        result = self.judge.judge(probe, replace(self.limits, seconds=seconds))
        self._unusable[size] = (
            f"{UNUSABLE} at size {size}: {result.message} (see {name})" if result.verdict == "error" else ""
        )

    def _computed(self, check: Check, record: Record) -> Record:
        """Return the record marked as declared, if the check passes with them; otherwise what remains beyond them."""
        computed = [each for each in self.deviations if each.computed]
        if not computed or (check.measure, str(check.parameters.get("size"))) in self._hung:
            return record
        if check.claim is not None and record.verdict == "fail":
            # A claim is about GPT-2, and the subject declares that it is another model.
            return replace(record, declared="; ".join(f"{each.says}: {each.reason}" for each in computed))
        again = self.judge.judge(check, self.limits, computed)
        if again.verdict not in EXPLAINED:
            # The difference that remains beyond what is declared is what the user needs to see.
            return again if again.message and again.message != record.message else record
        needed = self._needed_for(check, computed)
        reason = "; ".join(f"{each.says}: {each.reason}" for each in needed)
        return replace(record, declared=reason, details=details_with(record, needed, f"{check.suite}::{check.id}"))

    def _needed_for(self, check: Check, deviations: list[Deviation]) -> list[Deviation]:
        """Return the deviations without which the check does not pass.

        They are found by the first check of each measure, at the debug size; beyond it, those needed so far count.
        """
        kind = (check.measure, str(check.parameters.get("compare", "")))
        if kind not in self._needed and check.parameters.get("size") == "debug":
            others = {each: [other for other in deviations if other is not each] for each in deviations}
            needed = [
                each
                for each in deviations
                if len(deviations) > 1 and self.judge.judge(check, self.limits, others[each]).verdict not in EXPLAINED
            ]
            self._needed[kind] = needed or deviations
        if kind in self._needed:
            return self._needed[kind]
        so_far = {each for needed in self._needed.values() for each in needed}
        return [each for each in deviations if each in so_far] or deviations

    def unfounded(self) -> dict[str, str]:
        """Return what is wrong with each computed deviation that the subject does not have, by `file:line`.

        Return nothing if the subject breaks.
        """
        try:
            return self.judge.unfounded(self.deviations) if any(each.computed for each in self.deviations) else {}
        except KeyboardInterrupt:
            raise
        except BaseException:  # its checks say so
            return {}

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """Return the diagnosis as a row, with declared findings marked. If it breaks, `trouble` says why in a line."""
        try:
            undeclared = [row for row in rows if not row.get("declared")]
            diagnosis = self.judge.diagnose(undeclared, [each for each in self.deviations if each.computed])
        except KeyboardInterrupt:
            raise
        except TooLong as late:
            place = error_location(late)
            return {"trouble": f"the diagnosis did not end within {self.limits.seconds:g} s: it was at {place}"}
        except WorkerEnded as ended:
            return {"trouble": f"the diagnosis broke: {ended}"}
        except BaseException as error:
            return {"trouble": f"the diagnosis broke: {describe_error(error)}"}
        declared = declared_faults(self.deviations)
        findings = [{**each, "declared": each.get("fault") in declared} for each in diagnosis["findings"]]
        try:
            return {**diagnosis, "findings": findings, **self._explained(rows, findings)}
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a subject that ends its process when it is judged again
            trouble = f"which failures the findings explain is not known: {describe_error(error)}"
            return {**diagnosis, "findings": findings, "trouble": trouble}

    def _explained(self, rows: Sequence[Row], findings: Sequence[Row]) -> Row:
        """Return which failures the findings explain, and note in each finding how many; {} if that is not known."""
        found = [each for each in findings if not each["declared"]]
        failed = [row for row in rows if row["verdict"] in ("fail", "error") and not row.get("declared")]
        failed = [row for row in failed if not row["details"].get("because")]
        declared = [each for each in self.deviations if each.computed]
        result = explained(failed, found, self.judge, self.limits, declared=declared, two_processes=self.two_processes)
        if not result.judged:
            return {}
        for each, count in zip(found, result.by_finding, strict=True):
            each["explains"] = count
        return {"explained": list(result.checks), "explained_of": result.judged}

    def why_unreadable(self) -> str:
        """Return the screen that says why the subject cannot be built or called; "" if it can."""
        return self.judge.why_unreadable()

    def close(self) -> None:
        """Release the subject, and end its process if it has one."""
        if self._ahead is not None:
            self._ahead.close()
        self.judge.close()


def _id_of(check: Check) -> str:
    return f"{check.file}::{check.id}"


def make_runner(
    name: str,
    *,
    isolate: bool = False,
    seconds: float | None = SECONDS,
    memory_gib: float | None = None,
    echo: bool = False,
    own: bool = True,
    deviations: Sequence[Deviation] = (),
    two_processes: bool = False,
) -> Runner:
    """Return the runner of the subject with this name.

    Args:
        name: the subject, as `--subject` names it.
        isolate: judge it in a process of its own.
        seconds: the time limit of one check; None for no limit.
        memory_gib: the memory limit of an isolated subject; None for MEMORY_SHARE of the machine's memory.
        echo: show what the subject prints instead of capturing it.
        own: look for the name in the user's folder first.
        deviations: what the subject declares to be different from GPT-2.
        two_processes: do what is small in two processes. Not with `echo`, or where none can be forked for it.

    Raises:
        SubjectError: in one line, if the subject cannot be imported.
    """
    limits = Limits(seconds, (memory_gib or MEMORY_SHARE * machine_memory_gib()) if isolate else None)
    judge: Judge = (IsolatedJudge if isolate else InProcessJudge)(name, limits=limits, echo=echo, own=own)
    can = judge.forks if isinstance(judge, IsolatedJudge) else Resources.current.device == CPU
    forks = two_processes and not echo and can
    return Runner(name, judge, limits=limits, deviations=deviations, two_processes=forks)
