"""The checks that exist in the suites of a run, and the record of one in which a worker of xdist died."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness.core.errors import SuiteError
from harness.core.record_files import Row
from harness.core.shipped_packages import SUITES
from harness.measures.all_measures import measures
from harness.pytest_plugin.options import subject_names, trainer_names
from harness.suites.record import Record
from harness.suites.suite_file import read_suite
from harness.training.protocols import needs_a_trainer


def known_checks(rows: Iterable[Row], config: pytest.Config) -> dict[str, str]:
    """Return every check of the suites that ran and of those beside them, `suite::check`, with its size."""
    files = {config.rootpath / row["id"].split("::")[0] for row in rows}
    # With --pyargs the shipped suites are elsewhere: their ids are no paths from the user's folder.
    folders = {file.parent if file.is_file() else SUITES for file in files}
    known: dict[str, str] = {}
    for path in sorted({path for folder in folders for path in folder.glob("*.toml")}):
        try:
            suite = read_suite(path, measures())
        except SuiteError:
            continue  # reported where it is collected
        known |= {f"{suite.name}::{check.id}": str(check.parameters.get("size") or "debug") for check in suite.checks}
    return known


def row_of_crash(nodeid: str, config: pytest.Config) -> Row | None:
    """Return the record of a check in which a worker of xdist died, or None if the item is no check."""
    file, _, item = nodeid.partition("::")
    try:
        checks = read_suite(config.rootpath / file, measures()).checks
    except (SuiteError, OSError):
        return None
    message = "the process died in this check (it exited, crashed, or was killed); --isolate says how and where"
    for check in checks:
        trains = needs_a_trainer(measures()[check.measure].needs)
        for subject in trainer_names(config) if trains else subject_names(config):
            if item in (check.id, f"{check.id}@{subject}"):
                return Record(check, subject, "error", message, 0.0, details={"crashed": True}).as_row(id=nodeid)
    return None
