"""What one run leaves behind: its records as they come, the summary in the terminal, the reports at the end."""

from __future__ import annotations

import datetime
import os
import textwrap
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.record import Recorder

VERDICTS = ("pass", "fail", "error", "skip")
SLOWEST = 10


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

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write a check's record the moment it is known."""
        row = getattr(report, "gpt_harness_row", None)
        if row is not None:
            try:
                self.writer("verify").write(row)
            except OSError as error:  # a full disk must not cost the verdicts
                self.rows.append(row)
                self.trouble.append(f"a record was not written: {error}")

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """What -k and -m left out is known to xdist's workers only, and to each of them alike."""
        self._deselected = max(self._deselected, getattr(node, "workeroutput", {}).get("deselected", 0))

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Close the record files and write the reports from them, after Ctrl-C too."""
        if not self._writers:
            return
        from harness.environment import peak_memory_bytes
        from harness.errors import HarnessError
        from harness.report import write_latest

        footer = {
            "finished": _now(),
            "wall_seconds": time.monotonic() - self._began,
            "peak_memory_bytes": peak_memory_bytes(),
            "deselected": self._deselected,
            "complete": exitstatus not in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR),
        }
        try:
            for writer in self._writers.values():
                writer.recorder.close(footer)
            self.written = write_latest(self.folder, of=[writer.recorder.path for writer in self._writers.values()])
        except (OSError, HarnessError) as error:
            self.trouble.append(f"the report was not written: {error}")

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The verdict by suite, the slowest checks, and where the reports are."""
        checks = [row for row in self.rows if row.get("kind") == "record"]
        if checks:
            _summarise(terminalreporter, checks)
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

    def _open(self, run: str) -> Recorder:
        from harness.environment import environment
        from harness.plugin import subject_name
        from harness.record import Recorder

        stamp = self.started.replace(":", "").replace("-", "")
        header = {
            "run": run,
            "started": self.started,
            "subject": {"name": subject_name(self.config)},
            "arguments": list(self.config.invocation_params.args),
            "environment": environment(self.config.rootpath),
        }
        for attempt in range(100):
            name = f"{run}-{stamp}" + (f"-{attempt}" if attempt else "")
            try:
                return Recorder(self.folder / "records" / f"{name}.jsonl", header)
            except FileExistsError:
                continue  # another run began in the same second
        raise FileExistsError(f"{self.folder}/records holds a hundred runs of {stamp}")


class Writer:
    """Appends rows to the record file and keeps them for the summary."""

    def __init__(self, recorder: Recorder, rows: list[dict[str, Any]]) -> None:
        self.recorder = recorder
        self._rows = rows

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; it is on disk when this returns."""
        self.recorder.write(row)
        self._rows.append(row)


def _summarise(terminal: pytest.TerminalReporter, rows: list[dict[str, Any]]) -> None:
    terminal.section("verdict by suite")
    suites: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for row in rows:
        suites.setdefault(row["suite"], Counter())[row["verdict"]] += 1
        seconds[row["suite"]] += row["seconds"]
    width = max(map(len, suites))
    for suite, counts in sorted(suites.items()):
        told = "  ".join(f"{counts[v]:>3} {v}" if counts[v] else " " * 8 for v in VERDICTS)
        colour = {"red": True} if counts["fail"] or counts["error"] else {"green": True}
        terminal.write_line(f"{suite:<{width}}  {told}  {seconds[suite]:>6.1f} s", **colour)
    skipped: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "skip":
            skipped.setdefault(row["message"], []).append(f"{row['suite']}/{row['id'].rpartition('::')[2]}")
    if skipped:
        terminal.section("skipped, by what is missing")
        for reason, names in skipped.items():
            terminal.write_line(reason)
            for line in textwrap.wrap("  ".join(names), width=110, break_long_words=False, break_on_hyphens=False):
                terminal.write_line(f"    {line}")
    terminal.section(f"{min(SLOWEST, len(rows))} slowest checks")
    for row in sorted(rows, key=lambda r: -r["seconds"])[:SLOWEST]:
        terminal.write_line(f"{row['seconds']:>6.1f} s  {row['id']}")


def _relative(path: Path, config: pytest.Config) -> str:
    try:
        return str(path.resolve().relative_to(config.invocation_params.dir))
    except ValueError:
        return str(path)


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
