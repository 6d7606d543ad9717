"""One run's plugin: records as they come, the terminal summary, the diagnosis and the report at the end."""

from __future__ import annotations

import base64
import contextlib
import datetime
import os
import re
import time
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core import github_actions, record_files
from harness.core.errors import HarnessError, SubjectError
from harness.core.interrupts import interrupts_wait, without_entries_of_no_line
from harness.core.printable import printable
from harness.core.record_files import Row
from harness.core.shipped_packages import installed_packages
from harness.pytest_plugin import terminal_summary
from harness.pytest_plugin.annotations import error_lines
from harness.pytest_plugin.excerpts import with_excerpts
from harness.pytest_plugin.failure_text import FailureText
from harness.pytest_plugin.items import CheckItem
from harness.pytest_plugin.options import (
    deviations_of,
    reports_folder,
    subject_names,
    trainer_deviations_of,
    trainer_names,
    usage_error,
)
from harness.pytest_plugin.record_writer import RunWriter, open_record_file
from harness.pytest_plugin.runners import runner_of, trainer_runner_of

if TYPE_CHECKING:
    from harness.oracle.deviations import Deviation

IN_FULL = 3  # failures that are printed in full by default


SESSION: pytest.StashKey[Session] = pytest.StashKey()


class Session:
    """A plugin of the controlling process: under xdist the workers run checks and this process writes."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.folder = self._folder()
        self.started = _now()
        self._began = time.monotonic()
        self.trouble: list[str] = []
        self.rows: list[Row] = []
        self.written: list[Path] = []
        self.diagnoses: dict[str, Row] = {}
        self.scripts: dict[str, str] = {}
        self._writers: dict[str, RunWriter] = {}
        self._unwritable: dict[str, OSError] = {}
        self.lost: list[str] = []  # what was to be written and is not, as on a full disk
        self._deselected = 0
        self._interrupted = False

    def _folder(self) -> Path:
        """Return the folder of the reports. If --reports names one that cannot be written, that is a usage error now.

        The default folder is not checked: other projects load this plugin too, and may never write a report.
        """
        folder = reports_folder(self.config)
        if self.config.getoption("--reports") is None:
            return folder
        try:
            existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        except OSError as error:
            raise usage_error(error) from None
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise pytest.UsageError(f"--reports {folder}: {existing} is not a folder that can be written")
        return folder

    def writer(self, run: str) -> RunWriter:
        """Return the writer of this run's records, 'verify' or 'bench'. The file is created with the first record.

        Raises OSError if it cannot be created. That is tried once.
        """
        if run in self._unwritable:
            raise self._unwritable[run]
        if run not in self._writers:
            try:
                recorder = open_record_file(self.config, self.folder, run, self.started)
            except OSError as error:
                self._unwritable[run] = error
                raise
            self._writers[run] = RunWriter(recorder, self.rows)
        return self._writers[run]

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Count what -k and -m deselected, so that the report can say that the run was partial."""
        self._deselected += len(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a check's record as soon as it is known."""
        row = getattr(report, "gpt_harness_row", None)
        if row is not None:
            if isinstance(report.longrepr, str):
                report.longrepr = FailureText(report.longrepr, row["message"])  # type: ignore[assignment]  # by its methods
            self.write_row("verify", row)

    def write_row(self, run: str, row: Row) -> None:
        """Write a row of a run. A full disk costs neither verdicts nor times: they stay in memory for the summary."""
        try:
            self.writer(run).write(row)
        except OSError as error:
            self.rows.append(row)
            self.lost.append(f"a record was not written: {error}")

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Note Ctrl-C at once: a second one may come before pytest has set the exit status."""
        self._interrupted = True
        without_entries_of_no_line(excinfo.value)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """Take the number of deselected items from a worker of xdist. It is the same in every worker."""
        self._deselected = max(self._deselected, getattr(node, "workeroutput", {}).get("deselected", 0))

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Write the record of a check in which a worker of xdist died. xdist starts another for the rest."""
        from harness.pytest_plugin.suites_of_run import row_of_crash  # imports torch

        row = row_of_crash(crashitem, self.config)
        if row is not None:
            report.gpt_harness_row = row  # type: ignore[attr-defined]
            report.longrepr = row["message"]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Diagnose failures, close the record files and write the report from them, also after Ctrl-C."""
        if not self._writers and not self.rows:
            return
        ended = session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        if not (ended or self._interrupted):
            self._conclude(session)
        try:
            with interrupts_wait():
                self._close_all(session, ended=ended)
            if self._writers:  # otherwise the disk is full, which has been said: there is nothing to report from
                self._write_report()
        except KeyboardInterrupt:
            self.trouble.append("the report was not written (Ctrl-C): `gpt-harness report` makes it from the records")
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _close_all(self, session: pytest.Session, *, ended: bool) -> None:
        """Write the footers of the records."""
        from harness.core.environment import peak_memory_bytes

        stopped = bool(session.shouldstop or session.shouldfail)  # -x, --maxfail, or a subject that calls pytest.exit
        complete = not (ended or self._interrupted or stopped or unjudged(session) or self.lost)
        footer = {
            "finished": _now(),
            "wall_seconds": time.monotonic() - self._began,
            "peak_memory_bytes": peak_memory_bytes(),
            "deselected": self._deselected,
            "complete": complete,
            "excepted": self._excepted(),
        }
        for writer in self._writers.values():
            self._close(writer, footer)

    def _write_report(self) -> None:
        from harness.report import write_latest

        try:
            with installed_packages():  # a matplotlib.py beside the GPT is not for drawing plots
                self.written = write_latest(self.folder, of=[writer.recorder.path for writer in self._writers.values()])
        except (OSError, HarnessError) as error:
            self.lost.append(f"the report was not written: {error}")
        if github_actions.is_running_there():
            try:
                github_actions.write_summary(self._step_summary())
            except (OSError, HarnessError) as error:
                self.lost.append(f"the summary of the step was not written: {error}")

    def _step_summary(self) -> str:
        from harness.report.run_records import RunRecords
        from harness.report.step_summary import step_summary

        runs = {kind: RunRecords.of(record_files.read(writer.recorder.path)) for kind, writer in self._writers.items()}
        return step_summary(runs.get("verify"), runs.get("bench"))

    def _conclude(self, session: pytest.Session) -> None:
        """Diagnose failures and check the declared deviations. Ctrl-C meanwhile costs neither footer nor report."""
        try:
            self._diagnose()
            self._check_declarations(session)
        except KeyboardInterrupt:
            self._interrupted = True
            self.trouble.append("the diagnosis was interrupted (Ctrl-C); the verdicts above are complete")
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _close(self, writer: RunWriter, footer: Row) -> None:
        """Write the footer of one run's records. One file that cannot be written must not cost the other's footer."""
        try:
            if writer.restore():
                self.trouble.append(f"{writer.recorder.path} was deleted during the run; it is written again")
            writer.recorder.close({**footer, **writer.footer})
        except OSError as error:
            self.lost.append(f"{writer.recorder.path} has no footer, as if the run had been killed: {error}")

    def _excepted(self) -> dict[str, str]:
        """Return the declared deviations of each subject that has some, as the verdict words them."""
        from harness.oracle.deviations import except_for

        programs = trainer_names(self.config)
        return {
            name: except_for(found, "right" if name in programs else "GPT-2")
            for name, found in self._declared().items()
            if found
        }

    def _declared(self) -> dict[str, tuple[Deviation, ...]]:
        """Return the declared deviations of each GPT and each training program."""
        models = {name: deviations_of(self.config, name) for name in subject_names(self.config)}
        return models | {name: trainer_deviations_of(self.config, name) for name in trainer_names(self.config)}

    def _checks(self) -> list[Row]:
        return [row for row in self.rows if row.get("kind") == "record"]

    def _diagnose(self) -> None:
        """Find the cause of the failures of each subject; write it to the records, and a script that reproduces it."""
        if self.config.getoption("--no-diagnosis"):
            return
        checks = self._checks()
        # A subject that cannot be called, or hangs, would only break or hang again. One that ended a worker of xdist
        # would end this process, and with it the report.
        hopeless = {row["subject"] for row in checks if _ends_everything(row)}
        bad = [row["subject"] for row in checks if terminal_summary.is_bad(row) and row["subject"] not in hopeless]
        for subject in dict.fromkeys(bad):
            own = [row for row in checks if row["subject"] == subject]
            try:
                if subject in trainer_names(self.config):
                    found = trainer_runner_of(self.config, subject).diagnose(own)
                else:
                    found = runner_of(self.config, subject).diagnose(own)
            except SubjectError as error:
                found = {"trouble": str(error)}
            if not found:
                continue
            self.diagnoses[subject] = found
            if found.get("reproduction"):
                self._write_script(subject, found["reproduction"], found.get("data", ""))
            found = with_excerpts({key: value for key, value in found.items() if key != "data"})  # beside the script
            self.write_row("verify", {"kind": "diagnosis", **found, "subject": subject})

    def _write_script(self, subject: str, text: str, data: str) -> None:
        path = self.folder / f"reproduce_{re.sub(r'[^A-Za-z0-9]+', '_', subject).strip('_')}.py"
        try:
            path.write_text(text, encoding="utf-8")
            path.with_suffix(".safetensors").write_bytes(base64.b64decode(data))
        except OSError as error:
            self.trouble.append(f"{path} was not written: {error}")
        else:
            self.scripts[subject] = _relative(path, self.config)

    def _check_declarations(self, session: pytest.Session) -> None:
        """Fail the run if a declared deviation names nothing, or no longer applies."""
        from harness.oracle.deviations import problems  # imports torch
        from harness.pytest_plugin.suites_of_run import known_checks  # imports torch

        found = []
        for subject, declared in self._declared().items():
            own = [row for row in self._checks() if row["subject"] == subject]
            if declared and own:
                judged = {
                    terminal_summary.check_name(row).replace("/", "::", 1): terminal_summary.verdict_word(row)
                    for row in own
                }
                applied = {place for row in own for place in row["details"].get("deviations", ())}
                broken = any({"because", "crashed"} & set(row["details"]) for row in own)
                computed = any(each.computed for each in declared)
                unfounded = runner_of(self.config, subject).unfounded() if computed and not broken else {}
                found += problems(declared, applied, judged, known_checks(own, self.config), unfounded)
        self.trouble += found
        if found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None]:
        """Print the first failures in full and, last on the screen, the summary and where the report is."""
        checks = self._checks()
        if not checks:
            yield
        else:
            folded = self._fold(terminalreporter)
            try:
                with installed_packages():  # of other plugins, too
                    yield
            finally:
                terminalreporter.stats.update(folded)
            self._summary(terminalreporter, checks)
        for trouble in dict.fromkeys([*self.trouble, *self.lost]):
            terminalreporter.write_line(printable(trouble), red=True)
        if github_actions.is_running_there():
            for line in error_lines(checks, self.diagnoses):
                terminalreporter.write_line(printable(line))
        if self.written:
            # The HTML page first: it has everything, and can be passed on.
            pages = sorted((path for path in self.written if path.suffix in (".html", ".md")), key=lambda p: p.suffix)
            records = ", ".join(_relative(writer.recorder.path, self.config) for writer in self._writers.values())
            terminalreporter.write_line("")
            terminalreporter.write_line(f"records: {records}")
            terminalreporter.write_line(
                f"report:  {', '.join(_relative(page, self.config) for page in pages)}", bold=True
            )

    def _fold(self, terminal: pytest.TerminalReporter) -> dict[str, list[Any]]:
        """Leave pytest the first failures of different checks to print. Return all of them, to restore afterwards."""
        if self.config.getoption("--full-failures") or terminal.verbosity > 0:
            return {}
        failed = terminal.stats.get("failed", [])
        own = [report for report in failed if hasattr(report, "gpt_harness_row")]
        suites: Row = {}  # one of each suite says more than three of one
        checks: Row = {}
        for report in own:
            row = report.gpt_harness_row
            if not row["details"].get("because"):
                suites.setdefault(f"{row['subject']} {row['suite']}", report)
                checks.setdefault(f"{row['subject']} {row['suite']}/{row['check']}", report)
        chosen = [*suites.values(), *checks.values()][:IN_FULL]
        terminal.stats["failed"] = [report for report in failed if report in chosen or report not in own]
        return {"failed": failed} if failed else {}

    def _summary(self, terminal: pytest.TerminalReporter, checks: list[Row]) -> None:
        for text, kind in terminal_summary.summary(
            checks,
            self.diagnoses,
            excepted=self._excepted(),
            scripts=self.scripts,
            verbose=terminal.verbosity > 0,
            durations=self.config.getoption("durations") is not None,
        ):
            if kind == "section":
                terminal.section(printable(text))
            else:
                terminal.write_line(printable(text), **({kind: True} if kind else {}))


def unjudged(session: pytest.Session) -> int:
    """Return the number of checks that were to run and did not: a subject's signal handler may call pytest.exit."""
    config = session.config
    if hasattr(config, "workerinput") or config.getoption("collectonly") or config.getoption("setuponly", False):
        return 0
    return sum(isinstance(item, CheckItem) and item.record is None for item in session.items)


def only_skipped(session: pytest.Session) -> bool:
    """Return True if the run is of checks alone, and each was skipped: that is no verdict."""
    found = session.config.stash.get(SESSION, None)
    rows = [row for row in found.rows if row.get("kind") == "record"] if found else []
    return bool(rows) and len(rows) == session.testscollected and all(row["verdict"] == "skip" for row in rows)


def _ends_everything(row: Row) -> bool:
    """Return True if a check ended its process, or was not run because the debug size cannot be built, or hangs."""
    size = str(row["parameters"].get("size", "debug"))
    return "crashed" in row["details"] or ("because" in row["details"] and size == "debug")


def write_benchmark(config: pytest.Config, row: Row) -> None:
    """Write a row of a benchmark run."""
    config.stash[SESSION].write_row("bench", row)


def add_to_benchmark_footer(config: pytest.Config, fields: Row) -> None:
    """Have these fields in the last line of a benchmark run."""
    with contextlib.suppress(OSError):  # of a full disk, which `write_benchmark` has noted
        config.stash[SESSION].writer("bench").footer.update(fields)


def _relative(path: Path, config: pytest.Config) -> str:
    try:
        return str(path.resolve().relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
