"""A run's judge of one subject: where the subject lives, what is not worth trying again, and what it has declared."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

from harness.core import global_state
from harness.core.captured_output import Output, captured_output
from harness.core.error_text import describe_error, error_place
from harness.core.errors import SubjectError
from harness.core.limits import MEMORY_SHARE, SECONDS, Limits, TooLong, alarm, machine_memory_gib
from harness.core.process_exit import subject_at_work
from harness.core.sizes import SIZES
from harness.judging.run_check import Record, run
from harness.oracle.deviations import Deviation, declared_faults, in_force
from harness.subjects.adapters import adapt
from harness.subjects.model import Subject
from harness.suites.suite_file import Check

Row = dict[str, Any]
LOOK_SECONDS = 60.0  # for a look at whether a subject can be built and called at all


class Judge(Protocol):
    """Where a subject is judged: in this process, or in one of its own."""

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """One check; with deviations, against GPT-2 with those."""
        ...

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """What is wrong with the subject, given its records as rows."""
        ...

    def close(self) -> None:
        """Let go of the subject."""
        ...


class InProcessJudge:
    """The subject in this process. Raises SubjectError, in one line, where it cannot be had.

    `own=False`: the reference that ships with the harness, whatever the user's folder has under its name.
    """

    def __init__(self, spec: str, *, limits: Limits, echo: bool = False, own: bool = True) -> None:
        self.limits, self.echo = limits, echo
        self._others: dict[object, Subject] = {}
        changed: dict[str, str] = {}
        before = global_state.snapshot()
        try:
            with subject_at_work(), captured_output(Output()), alarm(limits.seconds):
                self.subject = adapt(spec, own=own)
        except SubjectError as error:
            if isinstance(late := error.__cause__, TooLong):
                told = f"does not import within {limits.seconds:g} s: it was at {error_place(late)}"
                raise SubjectError(told) from None
            raise
        finally:
            changed |= global_state.restore(before)
        global_state.remember_import(self.subject, changed)

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """See `Judge.judge`."""
        if not deviations:
            return run(check, self.subject, limits=limits, echo=self.echo)
        from harness.oracle.gpt2_with_deviations import forms_with_deviations

        record = None
        for form in forms_with_deviations(deviations, self.subject):
            if form not in self._others:
                self._others[form] = form.subject(self.subject)
            with in_force(form.truth):
                record = run(check, self._others[form], limits=limits, echo=self.echo)
            record = form.judged_again(record, self.subject)
            if record.verdict == "pass":
                return record
        assert record is not None
        return record

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """See `Judge.diagnose`."""
        from harness.diagnosis import diagnose

        records = [Record.of_row(check_of(row), row) for row in rows]
        with (
            global_state.isolated_global_state({}),
            subject_at_work(),
            captured_output(Output()),
            alarm(self.limits.seconds),
        ):
            return diagnose(self.subject, records).as_row()

    def close(self) -> None:
        """See `Judge.close`."""
        self._others.clear()


class Runner:
    """Judges a subject check by check, on a bench.

    After an error it looks whether the subject can be built and called at all; where it cannot, the checks that follow
    say so in a line each. What has hung is not waited for again.
    """

    def __init__(self, name: str, bench: Judge, *, limits: Limits, deviations: Sequence[Deviation] = ()) -> None:
        self.name, self.bench, self.limits, self.deviations = name, bench, limits, deviations
        self._hopeless: dict[str, str] = {}  # by size
        self._hung: dict[tuple[str, str], str] = {}  # by measure and size
        self._needed: set[Deviation] = set()

    def run(self, check: Check) -> Record:
        """The record of one check, after the deviations that are declared."""
        size = str(check.parameters.get("size") or "debug")
        because = self._hopeless.get(size) or self._hung.get((check.measure, size))
        if because:
            return Record(check, self.name, "error", because, 0.0, details={"because": because})
        record = self.bench.judge(check, self.limits)
        if record.verdict == "error":
            self._look(check, record, size)
        if record.verdict in ("fail", "error") and self.deviations and size not in self._hopeless:
            record = self._as_declared(check, record)
        return record

    def _look(self, check: Check, record: Record, size: str) -> None:
        """After an error: whether the subject can be built and called at this size."""
        name = f"{check.suite}/{check.id}"
        if "did not answer within" in record.message:
            self._hung[check.measure, size] = f"not run: {check.measure} hung before; see {name}"
        if size in self._hopeless or size not in SIZES or SIZES[size].width > SIZES["124M"].width:
            return
        seconds = min(self.limits.seconds or LOOK_SECONDS, LOOK_SECONDS)
        look = self.bench.judge(_look_at(size), replace(self.limits, seconds=seconds))
        self._hopeless[size] = (
            f"not run: it cannot be built and called at size {size}: {look.message} (see {name})"
            if look.verdict == "error"
            else ""
        )

    def _as_declared(self, check: Check, record: Record) -> Record:
        """The record with the reason, where a declared deviation accounts for it, and against GPT-2 with it if not."""
        name = f"{check.suite}::{check.id}"
        for each in self.deviations:
            if each.excuses(name):
                return replace(record, declared=f"{each.says}: {each.reason}", details=_by(record, [each], name))
        computed = [each for each in self.deviations if each.what]
        if not computed:
            return record
        again = self.bench.judge(check, self.limits, computed)
        if again.verdict != "pass":
            # With what is declared taken into account, what remains is the news.
            return again if again.verdict == record.verdict and again.message != record.message else record
        needed = self._accounting_for(check, computed)
        reason = "; ".join(f"{each.says}: {each.reason}" for each in needed)
        return replace(record, declared=reason, details=_by(record, needed, name))

    def _accounting_for(self, check: Check, deviations: list[Deviation]) -> list[Deviation]:
        """The fewest of the deviations with which the check passes; all of them where that would take long."""
        if check.parameters.get("size") != "debug":
            return [each for each in deviations if each in self._needed] or deviations
        for count in range(1, len(deviations)):
            for some in itertools.combinations(deviations, count):
                if self.bench.judge(check, self.limits, some).verdict == "pass":
                    self._needed |= set(some)
                    return list(some)
        self._needed |= set(deviations)
        return deviations

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """What is wrong with the subject, findings that are declared marked; a diagnosis that breaks is one line."""
        try:
            found = self.bench.diagnose(rows)
        except KeyboardInterrupt:
            raise
        except TooLong as late:
            return {
                "trouble": f"the diagnosis did not end within {self.limits.seconds:g} s: it was at {error_place(late)}"
            }
        except BaseException as error:
            return {"trouble": f"the diagnosis broke: {describe_error(error)}"}
        declared = declared_faults(self.deviations)
        findings = [{**each, "declared": each.get("fault") in declared} for each in found["findings"]]
        return {**found, "findings": findings}

    def close(self) -> None:
        """See `Judge.close`."""
        self.bench.close()


def make_runner(
    name: str,
    *,
    isolate: bool = False,
    seconds: float | None = SECONDS,
    memory_gib: float | None = None,
    echo: bool = False,
    own: bool = True,
    deviations: Sequence[Deviation] = (),
) -> Runner:
    """The judge of the subject that `name` names. Raises SubjectError, in one line, where it cannot be had."""
    limits = Limits(seconds, (memory_gib or MEMORY_SHARE * machine_memory_gib()) if isolate else None)
    if isolate:
        from harness.judging.isolated import IsolatedJudge

        return Runner(
            name, IsolatedJudge(name, limits=limits, echo=echo, own=own), limits=limits, deviations=deviations
        )
    return Runner(name, InProcessJudge(name, limits=limits, echo=echo, own=own), limits=limits, deviations=deviations)


def check_of(row: Mapping[str, Any]) -> Check:
    """The check of a record that is a row."""
    return Check(
        row["suite"], row["check"], row["measure"], row["parameters"], (), row["expected"], row["why"], row["source"]
    )


def _look_at(size: str) -> Check:
    return Check("behaviour", "builds-and-answers", "answers", {"size": size}, (), {"equals": True}, "", "")


def _by(record: Record, deviations: Sequence[Deviation], check: str) -> dict[str, Any]:
    places = [each.place for each in deviations]
    places += [
        f"{each.place} {pattern}"
        for each in deviations
        for pattern in each.checks
        if fnmatch.fnmatchcase(check, pattern)
    ]
    return {**record.details, "deviations": places}
