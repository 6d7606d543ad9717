"""What one run leaves behind: its records as they come, the summary in the terminal, the reports at the end."""

from __future__ import annotations

import base64
import datetime
import os
import re
import time
from collections.abc import Generator, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.core.record_files import RecordWriter

IN_FULL = 3  # failures told in full by default


class Session:
    """A plugin of the controlling process only: under xdist the workers measure and this one writes."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.folder = self._folder()
        self.started = _now()
        self._began = time.monotonic()
        self.trouble: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self.written: list[Path] = []
        self.diagnoses: dict[str, dict[str, Any]] = {}
        self.scripts: dict[str, str] = {}
        self._writers: dict[str, Writer] = {}
        self._deselected = 0

    def _folder(self) -> Path:
        """Where reports go. One that was named and cannot be written is a usage error now, before the first check.

        Unnamed it is no error yet: other projects have this plugin loaded too, and may never write a report.
        """
        named = self.config.getoption("--reports")
        # Without a configuration file the rootdir is wherever the arguments point; the user is in the current folder.
        home = self.config.rootpath if self.config.inipath else self.config.invocation_params.dir
        if named is None:
            return home / "reports"
        folder = Path(named)
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise pytest.UsageError(f"--reports {folder}: {existing} is not a folder that can be written")
        return folder

    def writer(self, run: str) -> Writer:
        """The record file of this run, of kind 'verify' or 'bench'; made when the first record comes."""
        if run not in self._writers:
            self._writers[run] = Writer(self._open(run), self.rows)
        return self._writers[run]

    def pytest_deselected(self, items: list[pytest.Item]) -> None:
        """Count what -k and -m left out, so that the report can say that the run was partial."""
        self._deselected += len(items)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a check's record the moment it is known."""
        row = getattr(report, "gpt_harness_row", None)
        if row is not None:
            if isinstance(report.longrepr, str):
                report.longrepr = FailureText(report.longrepr, row["message"])  # type: ignore[assignment]  # by its methods
            try:
                self.writer("verify").write(row)
            except OSError as error:  # a full disk must not cost the verdicts
                self.rows.append(row)
                self.trouble.append(f"a record was not written: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """What -k and -m left out is known to xdist's workers only, and to each of them alike."""
        self._deselected = max(self._deselected, getattr(node, "workeroutput", {}).get("deselected", 0))

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """An xdist worker that died in a check has left no record of it; xdist starts another for the rest."""
        row = _row_of_crash(crashitem, self.config)
        if row is not None:
            report.gpt_harness_row = row  # type: ignore[attr-defined]
            report.longrepr = row["message"]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Look for causes, close the record files and write the reports from them, after Ctrl-C too."""
        if not self._writers:
            return
        from harness.core.environment import peak_memory_bytes
        from harness.core.errors import HarnessError
        from harness.report import write_latest

        complete = exitstatus not in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        if complete:
            self._diagnose()
            self._hold_to_what_is_declared(session)
        footer = {
            "finished": _now(),
            "wall_seconds": time.monotonic() - self._began,
            "peak_memory_bytes": peak_memory_bytes(),
            "deselected": self._deselected,
            "complete": complete,
            "excepted": self._excepted(),
        }
        try:
            for writer in self._writers.values():
                writer.recorder.close({**footer, **writer.footer})
            self.written = write_latest(self.folder, of=[writer.recorder.path for writer in self._writers.values()])
        except (OSError, HarnessError) as error:
            self.trouble.append(f"the report was not written: {error}")
        except KeyboardInterrupt:
            self.trouble.append("the report was not written (Ctrl-C): `gpt-harness report` makes it from the records")
            session.exitstatus = pytest.ExitCode.INTERRUPTED

    def _excepted(self) -> dict[str, str]:
        """What is declared, in the words of the verdict, by subject."""
        from harness.oracle.deviations import except_for
        from harness.pytest_plugin.hooks import deviations_of, subject_names

        declared = {name: deviations_of(self.config, name) for name in subject_names(self.config)}
        return {name: except_for(found) for name, found in declared.items() if found}

    def _checks(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row.get("kind") == "record"]

    def _diagnose(self) -> None:
        """The cause of what failed, once for each subject, on record and as a script that shows it."""
        from harness.core.errors import SubjectError
        from harness.pytest_plugin.hooks import runner_of
        from harness.pytest_plugin.terminal_summary import is_bad

        if self.config.getoption("--no-diagnosis"):
            return
        checks = self._checks()
        # What cannot be called, or hangs, has been told, and would only break or hang again; what has ended a worker
        # of xdist would end this process, and with it the report.
        hopeless = {row["subject"] for row in checks if {"because", "crashed"} & set(row["details"])}
        bad = [row["subject"] for row in checks if is_bad(row) and row["subject"] not in hopeless]
        for subject in dict.fromkeys(bad):
            try:
                found = runner_of(self.config, subject).diagnose([row for row in checks if row["subject"] == subject])
            except SubjectError as error:
                found = {"trouble": str(error)}
            self.diagnoses[subject] = found
            if found.get("reproduction"):
                self._write_script(subject, found["reproduction"], found.get("data", ""))
            found = {key: value for key, value in found.items() if key != "data"}  # it is beside the script
            self.writer("verify").write({"kind": "diagnosis", **found, "subject": subject})

    def _write_script(self, subject: str, text: str, data: str) -> None:
        path = self.folder / f"reproduce_{re.sub(r'[^A-Za-z0-9]+', '_', subject).strip('_')}.py"
        try:
            path.write_text(text, encoding="utf-8")
            path.with_suffix(".safetensors").write_bytes(base64.b64decode(data))
        except OSError as error:
            self.trouble.append(f"{path} was not written: {error}")
        else:
            self.scripts[subject] = _relative(path, self.config)

    def _hold_to_what_is_declared(self, session: pytest.Session) -> None:
        """A declaration that names nothing, or that no longer applies, makes the run red."""
        from harness.oracle.deviations import problems
        from harness.pytest_plugin.hooks import deviations_of, subject_names
        from harness.pytest_plugin.terminal_summary import check_name, word

        found = []
        for subject in subject_names(self.config):
            declared = deviations_of(self.config, subject)
            own = [row for row in self._checks() if row["subject"] == subject]
            if declared and own:
                judged = {check_name(row).replace("/", "::", 1): word(row) for row in own}
                applied = {place for row in own for place in row["details"].get("deviations", ())}
                found += problems(declared, applied, judged, _known_checks(own, self.config))
        self.trouble += found
        if found and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> Generator[None]:
        """The first failures in full, then, last on the screen, the review and where the reports are."""
        checks = self._checks()
        if not checks:
            yield
        else:
            kept = self._fold(terminalreporter)
            try:
                yield
            finally:
                terminalreporter.stats.update(kept)
            self._review(terminalreporter, checks)
        for trouble in dict.fromkeys(self.trouble):
            terminalreporter.write_line(trouble, red=True)
        if self.written:
            pages = [path for path in self.written if path.suffix == ".md"]
            records = ", ".join(_relative(writer.recorder.path, self.config) for writer in self._writers.values())
            terminalreporter.write_line("")
            terminalreporter.write_line(f"records: {records}")
            terminalreporter.write_line(
                f"report:  {', '.join(_relative(page, self.config) for page in pages)}", bold=True
            )

    def _fold(self, terminal: pytest.TerminalReporter) -> dict[str, list[Any]]:
        """Leave the first failures of different checks for pytest to tell; all of them come back afterwards."""
        if self.config.getoption("--full-failures") or terminal.verbosity > 0:
            return {}
        failed = terminal.stats.get("failed", [])
        own = [report for report in failed if hasattr(report, "gpt_harness_row")]
        suites: dict[str, Any] = {}  # one of each suite says more than three of one
        checks: dict[str, Any] = {}
        for report in own:
            row = report.gpt_harness_row
            if not row["details"].get("because"):
                suites.setdefault(f"{row['subject']} {row['suite']}", report)
                checks.setdefault(f"{row['subject']} {row['suite']}/{row['check']}", report)
        chosen = [*suites.values(), *checks.values()][:IN_FULL]
        terminal.stats["failed"] = [report for report in failed if report in chosen or report not in own]
        return {"failed": failed} if failed else {}

    def _review(self, terminal: pytest.TerminalReporter, checks: list[dict[str, Any]]) -> None:
        from harness.pytest_plugin.terminal_summary import review

        for text, kind in review(
            checks,
            self.diagnoses,
            excepted=self._excepted(),
            scripts=self.scripts,
            at_length=terminal.verbosity > 0,
            durations=self.config.getoption("durations") is not None,
        ):
            if kind == "section":
                terminal.section(text)
            else:
                terminal.write_line(text, **({kind: True} if kind else {}))

    def _open(self, run: str) -> RecordWriter:
        from harness.core.environment import environment
        from harness.core.record_files import RecordWriter
        from harness.pytest_plugin.hooks import subject_name, subject_names

        stamp = self.started.replace(":", "").replace("-", "")
        header = {
            "run": run,
            "started": self.started,
            "subject": {"name": subject_name(self.config)},
            "subjects": subject_names(self.config),
            "arguments": list(self.config.invocation_params.args),
            "environment": environment(self.config.rootpath),
        }
        for attempt in range(100):
            name = f"{run}-{stamp}" + (f"-{attempt}" if attempt else "")
            try:
                return RecordWriter(self.folder / "records" / f"{name}.jsonl", header)
            except FileExistsError:
                continue  # another run began in the same second
        raise FileExistsError(f"{self.folder}/records holds a hundred runs of {stamp}")


class FailureText:
    """A failure in full, and the line of it for pytest's short summary and JUnit's message.

    pytest shortens that line to the terminal, but not in CI, where a plain string would be told twice.
    """

    def __init__(self, text: str, message: str) -> None:
        self.text = text
        self.reprcrash = SimpleNamespace(message=" ".join(message.split()))

    def __str__(self) -> str:
        return self.text

    def toterminal(self, tw: Any) -> None:
        """Every line, as a failed check tells it."""
        tw.line(self.text)


class Writer:
    """Appends rows to the record file and keeps them for the summary; `footer` is added to the file's last line."""

    def __init__(self, recorder: RecordWriter, rows: list[dict[str, Any]]) -> None:
        self.recorder = recorder
        self.footer: dict[str, Any] = {}
        self._rows = rows

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is on disk when this returns."""
        self.recorder.write(row)
        self._rows.append(row)


def _known_checks(rows: Iterable[dict[str, Any]], config: pytest.Config) -> dict[str, str]:
    """Every check that there is, `suite::check` to its size: of the suites beside those that ran, and the shipped."""
    from harness.core.errors import SuiteError
    from harness.core.shipped_packages import SUITES
    from harness.suites.suite_file import read_suite

    files = {config.rootpath / row["id"].split("::")[0] for row in rows}
    # With --pyargs the ids of the shipped suites do not lead to them from the user's folder.
    folders = {file.parent if file.is_file() else SUITES for file in files}
    known: dict[str, str] = {}
    for path in sorted({path for folder in folders for path in folder.glob("*.toml")}):
        try:
            suite = read_suite(path)
        except SuiteError:
            continue  # told where it is collected
        known |= {f"{suite.name}::{check.id}": str(check.parameters.get("size") or "debug") for check in suite.checks}
    return known


def _row_of_crash(nodeid: str, config: pytest.Config) -> dict[str, Any] | None:
    """The record of a check in which the process died; None where it was no check."""
    from harness.core.errors import SuiteError
    from harness.judging.run_check import Record
    from harness.pytest_plugin.hooks import subject_names
    from harness.suites.suite_file import read_suite

    file, _, item = nodeid.partition("::")
    try:
        checks = read_suite(config.rootpath / file).checks
    except (SuiteError, OSError):
        return None
    for check in checks:
        for subject in subject_names(config):
            if item in (check.id, f"{check.id}@{subject}"):
                told = (
                    "the process died in this check (it exited, crashed, or was killed); --isolate says how and where"
                )
                return Record(check, subject, "error", told, 0.0, details={"crashed": True}).as_row(id=nodeid)
    return None


def _relative(path: Path, config: pytest.Config) -> str:
    try:
        return str(path.resolve().relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
