"""Judge a folder of other people's GPTs as their authors would, and keep what was read, found and said of each."""

from __future__ import annotations

import ast
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core import record_files
from harness.core.errors import HarnessError, did_you_mean
from harness.core.record_files import Row
from harness.core.shipped_packages import HOME, SUITES
from harness.core.toml_text import read_toml
from harness.subjects.adapters.likely_models import likely_models

TRUTHS = "survey.toml"
KEYS = {"spec", "truth", "deviations", "fair"}
_running: set[subprocess.Popen[str]] = set()  # to be ended at Ctrl-C
LONGEST_MESSAGE = 2000  # characters of what pytest printed, from its end


@dataclass(frozen=True)
class Surveyed:
    """One GPT of a survey.

    Attributes:
        spec: FILE.py:NAME, relative to the folder.
        truth: What a person says of it who has read it; of a file without an entry, its docstring.
        deviations: The ids that a diagnosis should print, no more and no fewer; None if nobody has said.
        fair: Whether it can fairly be expected to be read.
    """

    spec: str
    truth: str = ""
    deviations: tuple[str, ...] | None = None
    fair: bool = True


def surveyed(folder: Path, truths: Path | None = None) -> list[Surveyed]:
    """Return the GPTs of a folder: those that the file of truths lists, or else one of each Python file with a model.

    The file of truths is `survey.toml` in the folder unless another is named. Raises HarnessError for a folder without
    a GPT, and for a file of truths that is not valid.
    """
    if not folder.is_dir():
        raise HarnessError(f"{folder} is not a folder; expected one with other people's GPTs")
    table = truths or folder / TRUTHS
    if truths is not None or table.is_file():
        return _listed(table)
    found = [each for path in sorted(folder.rglob("*.py")) if (each := _in_file(path, folder)) is not None]
    if not found:
        raise HarnessError(f"{folder}: no Python file has a class that looks like a model; list them in {table.name}")
    return found


def _listed(path: Path) -> list[Surveyed]:
    """Return the entries of a file of truths."""
    tables = read_toml(path)[1].get("subject")
    if not isinstance(tables, list) or not tables:
        raise HarnessError(f"{path}:1: expected [[subject]], in double brackets, once for each GPT")
    return [_entry(table, f"{path}: [[subject]] number {number}") for number, table in enumerate(tables, 1)]


def _entry(table: Mapping[str, Any], place: str) -> Surveyed:
    for key in table:
        if key not in KEYS:
            raise HarnessError(f"{place}: unknown key '{key}'; {did_you_mean(key, KEYS)}")
    spec, deviations = table.get("spec"), table.get("deviations")
    if not isinstance(spec, str) or ":" not in spec:
        raise HarnessError(f"{place}: spec: expected 'FILE.py:NAME', found {spec!r}")
    if deviations is not None and not (isinstance(deviations, list) and all(isinstance(d, str) for d in deviations)):
        raise HarnessError(f"{place}: deviations: expected a list of ids, found {deviations!r}")
    return Surveyed(
        spec,
        str(table.get("truth", "")),
        None if deviations is None else tuple(deviations),
        bool(table.get("fair", True)),
    )


def _in_file(path: Path, folder: Path) -> Surveyed | None:
    """Return the GPT of a file, with its docstring as the truth; None if no class or function looks like one."""
    try:
        names = likely_models(path)
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8-sig"))) or ""
    except (OSError, SyntaxError, UnicodeDecodeError, ValueError):
        return None
    return Surveyed(f"{path.relative_to(folder)}:{names[0]}", " ".join(docstring.split())) if names else None


def survey(gpt: Surveyed, folder: Path, *, seconds: float) -> Row:
    """Run `pytest verifications/ -m debug --subject SPEC` from the folder, and return a JSON-ready row.

    `seconds`: the time after which the run is ended; what it had recorded by then counts.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as reports:
        status, printed = _run(gpt.spec, folder, Path(reports), seconds)
        rows = _rows(Path(reports))
    checks = [row for row in rows if row.get("kind") == "record"]
    read = any(row["suite"] == "parity" and row["verdict"] in ("pass", "fail") for row in checks)
    found = [each for row in rows if row.get("kind") == "diagnosis" for each in row.get("findings", ())]
    return {
        "kind": "surveyed",
        "spec": gpt.spec,
        "truth": gpt.truth,
        "fair": gpt.fair,
        "expected": None if gpt.deviations is None else list(gpt.deviations),
        "read": read,
        "status": status,
        "verdicts": dict(Counter("declared" if row.get("declared") else str(row["verdict"]) for row in checks)),
        "findings": [
            {key: str(each.get(key, "")) for key in ("fault", "where", "cause", "evidence", "source")} for each in found
        ],
        "message": "" if read else printed[-LONGEST_MESSAGE:],
        "seconds": time.perf_counter() - started,
    }


def _run(spec: str, folder: Path, reports: Path, seconds: float) -> tuple[int | None, str]:
    """Return the exit status of the run, None if it was ended, and what it printed."""
    command = [sys.executable, "-m", "pytest", str(SUITES), "-m", "debug", "--subject", spec, "--reports", str(reports),
               "--rootdir", str(HOME), "-p", "no:cacheprovider", "-q"]  # fmt: skip
    path = os.pathsep.join(filter(None, (str(HOME), os.environ.get("PYTHONPATH"))))
    process = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _running.add(process)
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _end(process)
        printed, _ = process.communicate()
        return None, f"{printed}\nended after {seconds:g} s"
    finally:
        _running.discard(process)
    return process.returncode, printed.strip()


def end_running() -> None:
    """End the runs of every thread: Ctrl-C does not reach them, as they are in sessions of their own."""
    for process in list(_running):
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """End the run and every process that it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _rows(reports: Path) -> list[Row]:
    """Return the rows that the run recorded."""
    return [row for path in sorted((reports / "records").glob("verify-*.jsonl")) for row in record_files.read(path)]
