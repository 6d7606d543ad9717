"""The pytest plugin: hooks only. Suites become test items, records go to disk, the reports follow."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.errors import HarnessError
from harness.items import CheckItem, SuiteFile
from harness.session import Session

if TYPE_CHECKING:
    from harness.session import Writer
    from harness.subject import Subject

# A name, not an import: the harness knows no particular GPT, but a run without --subject judges the reference.
DEFAULT_SUBJECT = "gpt:GPT"
SUITE_FOLDER = "verifications"

_subject = pytest.StashKey["Subject"]()
_session = pytest.StashKey[Session]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that the suites and the benchmarks share."""
    group = parser.getgroup("gpt-harness", "judging a GPT (gpt-harness)")
    group.addoption(
        "--subject",
        metavar="FILE.py:NAME",
        help=f"the GPT to judge: FILE.py:NAME or package.module:NAME (default: {DEFAULT_SUBJECT}, the reference)",
    )
    group.addoption(
        "--text",
        metavar="NAME|FILE",
        help="where real tokens are taken from: tinyshakespeare (default) or a UTF-8 file of yours",
    )
    group.addoption(
        "--pretrained",
        metavar="NAME|DIR",
        help="the released GPT-2 weights: a directory, or a name in the local cache or on the hub (default: gpt2)",
    )
    group.addoption(
        "--reports",
        metavar="DIR",
        help="where records, tables, plots and the page go (default: reports/ in the rootdir)",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, so that --strict-markers holds, and the part that writes, in the controlling process."""
    for marker in (
        "debug: a check at the debug size (milliseconds)",
        "full: a check at a published size (124M parameters or more)",
        "text: a check on real text",
        "pretrained: a check that needs GPT-2's released weights",
    ):
        config.addinivalue_line("markers", marker)
    if any(SUITE_FOLDER in Path(argument.split("::")[0]).parts for argument in config.args):
        _let_threads_sleep()
    from harness.resources import Resources

    Resources.configure(text=config.getoption("--text"), pretrained=config.getoption("--pretrained"))
    if not hasattr(config, "workerinput"):
        config.stash[_session] = Session(config)
        config.pluginmanager.register(config.stash[_session], "gpt-harness-session")


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep, not spin, while they wait; it is read once, when torch is loaded.

    With another program on the same cores a spinning thread keeps from work the very one that it waits for: on two
    shared cores the suites then take three times as long. Timings are not for suites, so nothing here depends on it.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """A --subject that cannot be had ends the run here, in one line; in an xdist worker it would crash the worker."""
    config = session.config
    named = config.getoption("--subject")
    if named is not None and not config.getoption("collectonly") and not hasattr(config, "workerinput"):
        try:
            subject_of(config)
        except HarnessError as error:
            raise pytest.UsageError(f"--subject {named}: {error}") from None


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Every *.toml below a folder named `verifications` is a suite, and so is one named on the command line."""
    if file_path.suffix == ".toml" and (SUITE_FOLDER in file_path.parts[-2:-1] or parent.session.isinitpath(file_path)):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


def pytest_deselected(items: list[pytest.Item]) -> None:
    """In an xdist worker: tell the controlling process how many were left out."""
    for config in {item.config for item in items}:
        if hasattr(config, "workeroutput"):
            told = config.workeroutput
            told["deselected"] = told.get("deselected", 0) + len(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Hang the record on the report, which travels from an xdist worker to the controlling process."""
    report = yield
    if isinstance(item, CheckItem) and report.when == "call" and (row := item.row()) is not None:
        from harness.record import encode

        report.gpt_harness_row = encode(row)
        if report.skipped:  # by name, where the check stands, not where the harness skips
            report.longrepr = (str(item.path), item.check.line, row["message"])
    return report


def subject_name(config: pytest.Config) -> str:
    """What the user names, or the reference; an empty name is not the reference (`--subject "$UNSET"`)."""
    named = config.getoption("--subject")
    return DEFAULT_SUBJECT if named is None else str(named)


def subject_of(config: pytest.Config) -> Subject:
    """The subject of this run, looked up once. Raises SubjectError."""
    if _subject not in config.stash:
        from harness.adapters import adapt

        config.stash[_subject] = adapt(subject_name(config))
    return config.stash[_subject]


def recorder_of(config: pytest.Config) -> Writer:
    """Where a benchmark writes its comparisons: `recorder_of(config).write(row)`."""
    return config.stash[_session].writer("bench")
