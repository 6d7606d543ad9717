"""Suites and checks as pytest collects them: a file and its items."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import SuiteError
from harness.pytest_plugin.failure_text import format_failure
from harness.pytest_plugin.options import DEFAULT_DEVICE, as_typed, subject_names, trainer_names
from harness.pytest_plugin.runners import runner_of, trainer_runner_of

if TYPE_CHECKING:
    from harness.suites.check import Check
    from harness.suites.record import Record

# Options that change what a check means: they belong in the command that runs it again.
MEANING = ("--text", "--pretrained", "--deviations", "--device")


class SuiteFile(pytest.File):
    """A suite of checks."""

    def collect(self) -> Iterator[CheckItem]:
        """Return an item for each check and subject, with the check's matrix and cases expanded."""
        # Imported here: they load torch, which the runs of other projects do not need.
        from harness.measures.all_measures import measures
        from harness.suites.suite_file import read_suite
        from harness.training.protocols import needs_a_trainer

        try:
            suite = read_suite(self.path, measures())
        except SuiteError as error:
            raise self.CollectError(str(error)) from None
        self.config.addinivalue_line("markers", f"{suite.name}: {suite.title}")
        for trains, subjects in ((False, subject_names(self.config)), (True, trainer_names(self.config))):
            checks = [c for c in suite.checks if needs_a_trainer(measures()[c.measure].needs) == trains]
            for subject in subjects:
                of = f"@{subject}" if len(subjects) > 1 else ""
                for check in checks:
                    name = f"{check.id}{of}"
                    yield CheckItem.from_parent(self, name=name, check=check, subject=subject, trains=trains)


class CheckItem(pytest.Item):
    """One check of one subject as a test item; with `trains`, the subject is a training program."""

    def __init__(self, *, check: Check, subject: str, trains: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.subject = subject
        self.trains = trains
        self.record: Record | None = None
        parameters = check.parameters
        self.add_marker(check.suite)
        if trains:  # its rehearsals are of a tiny model
            self.add_marker("debug")
        if "size" in parameters:
            self.add_marker("debug" if parameters["size"].startswith("debug") else "full")
        if parameters.get("tokens") == "text":
            self.add_marker("text")
        if parameters.get("weights") == "pretrained":
            self.add_marker("pretrained")

    def runtest(self) -> None:
        """Run the check. A skip, and a failure that is not declared, is raised, as pytest expects."""
        runner = (trainer_runner_of if self.trains else runner_of)(self.config, self.subject)
        self.record = runner.run(self.check)
        if self.record.verdict == "skip":
            pytest.skip(self.record.message)
        if self.record.verdict != "pass" and not self.record.declared:
            raise CheckFailed(self.record)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """Return the text of a failed check; for other exceptions, pytest's own."""
        if isinstance(excinfo.value, CheckFailed):
            place = f"{as_typed(self.path, self.config)}:{self.check.line}"
            return format_failure(excinfo.value.record, place, self.rerun())
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the check's line in its suite."""
        return self.path, self.check.line - 1, self.check.id

    def row(self) -> dict[str, Any] | None:
        """Return the record as a row; None if the check has not run."""
        return None if self.record is None else self.record.as_row(id=self.nodeid, rerun=self.rerun())

    def rerun(self) -> str:
        """Return the command that runs this check again, alone."""
        words = ["pytest", f"{as_typed(self.path, self.config)}::{self.check.id}"]
        option = "--trainer" if self.trains else "--subject"
        if self.config.getoption(option) is not None:
            words += [option, self.subject]
        for choice in (self.config.getoption("--set") or ()) if self.trains else ():
            words += ["--set", choice]
        for option in MEANING:
            value = self.config.getoption(option)
            if value not in (None, DEFAULT_DEVICE):
                words += [option, value]
        if (isolate := self.config.getoption("--isolate")) is not None and not self.trains:
            words.append("--isolate" if isolate else "--no-isolate")
        return shlex.join(words)


class CheckFailed(Exception):  # noqa: N818 - named by what happened
    """Carries the record of a failed check to pytest."""

    def __init__(self, record: Record) -> None:
        super().__init__(record.message)
        self.record = record
