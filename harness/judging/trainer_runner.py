"""Run the checks of training programs on one of them. Its rehearsals run in processes of their own, under limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness.core.limits import MEMORY_SHARE, SECONDS, Limits, machine_memory_gib
from harness.core.record_files import Row
from harness.core.shipped_packages import HOME
from harness.diagnosis.training import Source, diagnose_training
from harness.judging.excused import excused
from harness.judging.run_check import run
from harness.oracle.deviations import Deviation
from harness.suites.check import Check
from harness.suites.record import Record
from harness.training.program import SECONDS as REHEARSAL_SECONDS
from harness.training.program import TrainingProgram


class TrainerRunner:
    """Runs checks on one training program. A failure that several checks meet is shown in full once.

    The time limit is that of a rehearsal, whose processes are ended after it. A check has none of its own: an alarm in
    the middle of a rehearsal would leave it without a result, and each later check of it would begin again.

    Args:
        name: the program, as `--trainer` names it.
        chosen: what the user set in its source, as `NAME=VALUE`.
        seconds: the time limit of one rehearsal, if it is below the usual one; None for no limit.
        memory_gib: the memory limit of the program's process; None for MEMORY_SHARE of the machine's memory.
        echo: show what measures print instead of capturing it.
        own: look for the name in the user's folder. False for the reference that ships with the harness.
        deviations: what the program declares to be different on purpose: checks, each list with its reason.

    Raises:
        SubjectError: in one line, if there is no such program.
    """

    def __init__(
        self,
        name: str,
        *,
        chosen: Sequence[str] = (),
        seconds: float | None = SECONDS,
        memory_gib: float | None = None,
        echo: bool = False,
        own: bool = True,
        deviations: Sequence[Deviation] = (),
    ) -> None:
        self.name, self.echo, self.deviations = name, echo, deviations
        of_rehearsal = None if seconds is None else min(seconds, REHEARSAL_SECONDS)
        limits = Limits(of_rehearsal, memory_gib or MEMORY_SHARE * machine_memory_gib())
        self.program = TrainingProgram(name, chosen=chosen, folder=None if own else HOME, limits=limits)
        self._errors: dict[str, str] = {}  # message -> the first check that met it

    def run(self, check: Check) -> Record:
        """Return the record of one check."""
        record = run(check, self.program, echo=self.echo)
        if record.verdict == "error":
            first = self._errors.setdefault(record.message, check.id)
            if first != check.id:
                because = f"{record.message} (see {first})"
                record = replace(record, message=because, details={**record.details, "because": because})
        return record if record.verdict not in ("fail", "error") else excused(record, self.deviations) or record

    def diagnose(self, rows: Sequence[Row]) -> Row:
        """Return the diagnosis as a row, with the number of failures that each finding explains.

        It is {} if no check failed: an error says itself what was raised, and where.
        """
        judged = [row for row in rows if not row.get("declared")]
        records = [Record.from_row(Check.from_row(row), row) for row in judged]
        if not any(record.verdict == "fail" for record in records):
            return {}
        source = Source(self.program.files, self.program.settings.called("steps"))
        diagnosis, explained = diagnose_training(self.program, records, source)
        ids = {id(record): row["id"] for record, row in zip(records, judged, strict=True)}
        of = sum(record.verdict in ("fail", "error") for record in records)
        row = diagnosis.as_row()
        for finding, own in zip(row["findings"], explained, strict=True):
            finding["explains"] = len(own)
        found = [ids[id(each)] for own in explained for each in own]
        return {**row, "explained": found, "explained_of": of, "in_order": True}

    def close(self) -> None:
        """Remove the recordings."""
        self.program.close()
