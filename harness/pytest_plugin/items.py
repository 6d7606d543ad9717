"""Suites and checks as pytest sees them: a file to collect and its items."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import SuiteError

if TYPE_CHECKING:
    from harness.judging.run_check import Record
    from harness.suites.suite_file import Check

# Options that change what a check means, and so belong into the command that runs it again.
MEANING = ("--text", "--pretrained", "--deviations")


class SuiteFile(pytest.File):
    """A suite of checks."""

    def collect(self) -> Iterator[CheckItem]:
        """One item a check and subject, expanded over the check's matrix and cases."""
        from harness.pytest_plugin.hooks import subject_names
        from harness.suites.suite_file import read_suite

        try:
            suite = read_suite(self.path)
        except SuiteError as error:
            raise self.CollectError(str(error)) from None
        self.config.addinivalue_line("markers", f"{suite.name}: {suite.title}")
        subjects = subject_names(self.config)
        for subject in subjects:
            of = f"@{subject}" if len(subjects) > 1 else ""
            for check in suite.checks:
                yield CheckItem.from_parent(self, name=f"{check.id}{of}", check=check, subject=subject)


class CheckItem(pytest.Item):
    """One check of one subject as a test item."""

    def __init__(self, *, check: Check, subject: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.subject = subject
        self.record: Record | None = None
        parameters = check.parameters
        self.add_marker(check.suite)
        if "size" in parameters:
            self.add_marker("debug" if parameters["size"].startswith("debug") else "full")
        if parameters.get("tokens") == "text":
            self.add_marker("text")
        if parameters.get("weights") == "pretrained":
            self.add_marker("pretrained")

    def runtest(self) -> None:
        """Run the check; a verdict other than pass, and not declared, is raised as pytest expects it."""
        from harness.pytest_plugin.hooks import runner_of

        self.record = runner_of(self.config, self.subject).run(self.check)
        if self.record.verdict == "skip":
            pytest.skip(self.record.message)
        if self.record.verdict != "pass" and not self.record.declared:
            raise NotAsExpected(self.record)

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: Any = None) -> Any:
        """A failed check as a colleague would report it; anything else as pytest does."""
        if isinstance(excinfo.value, NotAsExpected):
            place = f"{_shown(self.path, self.config)}:{self.check.line}"
            return format_failure(excinfo.value.record, place, self.rerun())
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where the check stands in its suite."""
        return self.path, self.check.line - 1, self.check.id

    def row(self) -> dict[str, Any] | None:
        """The record as a JSON-ready row, once the check ran."""
        return None if self.record is None else self.record.as_row(id=self.nodeid, rerun=self.rerun())

    def rerun(self) -> str:
        """The command that runs this check again, alone."""
        words = ["pytest", f"{_shown(self.path, self.config)}::{self.check.id}"]
        if self.config.getoption("--subject") is not None:
            words += ["--subject", self.subject]
        for option in MEANING:
            value = self.config.getoption(option)
            if value is not None:
                words += [option, value]
        if self.config.getoption("--isolate"):
            words.append("--isolate")
        return shlex.join(words)


class NotAsExpected(Exception):  # noqa: N818 - says what is the matter
    """Carries the record of a failed check to pytest."""

    def __init__(self, record: Record) -> None:
        super().__init__(record.message)
        self.record = record


def format_failure(record: Record, place: str, rerun: str) -> str:
    """A failed or broken check in full: found, expected, where, with what, why, source, and how to run it again.

    pytest's short summary shows the first line.
    """
    if record.details.get("because"):  # format_failure in full where it came up first
        return textwrap.fill(record.message, width=110, break_long_words=False)
    check, lines = record.check, {}
    if record.where:
        lines["where"] = (
            f"first at {record.where[0]}"
            + (f"; also {', '.join(record.where[1:6])}" if record.where[1:] else "")
            + (" ..." if record.where[6:] else "")
        )
    if hint := record.details.get("hint"):
        lines["hint"] = str(hint)
    if changed := record.details.get("changed"):
        lines["changed"] = "; ".join(f"{name}: {how}" for name, how in changed.items()) + " (put back)"
    if output := record.details.get("output"):
        lines["printed"] = f"{output['bytes']:,} bytes, beginning {' '.join(output['begins'].split())[:60]!r}"
    lines |= {
        "subject": record.subject,
        "with": " ".join(f"{key}={value}" for key, value in check.parameters.items()),
        "why": check.why,
        "source": check.source,
        "check": place,
        "again": rerun,
    }
    format_failure = [
        textwrap.fill(
            text,
            width=110,
            initial_indent=f"  {label:<10}",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines.items()
        if text
    ]
    return "\n".join([textwrap.fill(record.message, width=110, break_long_words=False), *format_failure])


def _shown(path: Path, config: pytest.Config) -> str:
    """A path as the user would type it where pytest was started."""
    folder = config.invocation_params.dir
    return str(path.relative_to(folder) if path.is_relative_to(folder) else path)
