"""A judge that has the subject in this process."""

from __future__ import annotations

from collections.abc import Sequence

from harness.core import global_state
from harness.core.captured_output import CapturedOutput, captured_output
from harness.core.error_text import error_location
from harness.core.errors import SubjectError
from harness.core.limits import Limits, TooLong, alarm
from harness.core.process_exit import subject_at_work
from harness.core.record_files import Row
from harness.diagnosis import diagnose
from harness.judging.run_check import run
from harness.oracle.deviations import Deviation, override_oracle
from harness.oracle.gpt2_with_deviations import forms_with_deviations
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Subject
from harness.suites.check import Check
from harness.suites.record import Record


class InProcessJudge:
    """Imports a subject and judges it in this process.

    Args:
        spec: the subject, as `--subject` names it.
        limits: for the import, and for the diagnosis.
        echo: show what the subject prints instead of capturing it.
        own: look for the name in the user's folder first. False for the reference that ships with the harness.

    Raises:
        SubjectError: in one line, if the subject cannot be imported.
    """

    def __init__(self, spec: str, *, limits: Limits, echo: bool = False, own: bool = True) -> None:
        self.limits, self.echo = limits, echo
        self._with_deviations: dict[object, Subject] = {}
        changed: dict[str, str] = {}
        before = global_state.snapshot()
        try:
            with subject_at_work(), captured_output(CapturedOutput()), alarm(limits.seconds):
                self.subject = adapt(spec, own=own)
        except SubjectError as error:
            if isinstance(late := error.__cause__, TooLong):
                message = f"does not import within {limits.seconds:g} s: it was at {error_location(late)}"
                raise SubjectError(message) from None
            raise
        finally:
            changed |= global_state.restore(before)
        global_state.remember_import(self.subject, changed)

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """See `Judge.judge`."""
        if not deviations:
            return run(check, self.subject, limits=limits, echo=self.echo)
        record = None
        for form in forms_with_deviations(deviations, self.subject):
            if form not in self._with_deviations:
                self._with_deviations[form] = form.copy_of_subject(self.subject)
            with override_oracle(form.oracle):
                record = run(check, self._with_deviations[form], limits=limits, echo=self.echo)
            record = form.judge_again(record, self.subject)
            if record.verdict == "pass":
                return record
        assert record is not None
        return record

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """See `Judge.diagnose`."""
        records = [Record.from_row(Check.from_row(row), row) for row in rows]
        with (
            global_state.isolated_global_state({}),
            subject_at_work(),
            captured_output(CapturedOutput()),
            alarm(self.limits.seconds),
        ):
            return diagnose(self.subject, records).as_row()

    def close(self) -> None:
        """See `Judge.close`."""
        self._with_deviations.clear()
