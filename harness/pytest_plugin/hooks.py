"""The pytest plugin's hooks: suites become test items, records go to disk, and the report follows."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.core import github_actions
from harness.core.captured_output import shorten
from harness.core.errors import HarnessError
from harness.core.garbage import lasting_objects
from harness.core.limits import run_is_over
from harness.core.printable import printable
from harness.core.process_exit import ExitGuard
from harness.core.record_files import encode
from harness.core.resources import Resources
from harness.core.shipped_packages import installed_packages
from harness.core.waiting import said_if_slow
from harness.pytest_plugin.annotations import usage_error_line
from harness.pytest_plugin.items import CheckItem, SuiteFile
from harness.pytest_plugin.options import (
    DEFAULT_DEVICE,
    add_options,
    deviations_of,
    is_isolated,
    reports_folder,
    subject_names,
    trainer_deviations_of,
    trainer_names,
    usage_error,
)
from harness.pytest_plugin.runners import close_runners, runner_of, trainer_runner_of
from harness.pytest_plugin.session import SESSION, Session, only_skipped, unjudged
from harness.report.markdown import escape
from harness.suites.suite_order import place_of

SUITE_FOLDER = "verifications"
_exit_guard = pytest.StashKey[ExitGuard]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the plugin's options."""
    add_options(parser)


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers and, in the controlling process, the plugin that writes records and reports."""
    for marker in (
        "debug: a check at the debug size (milliseconds)",
        "full: a check at a published size (124M parameters or more)",
        "text: a check on real text",
        "pretrained: a check that needs GPT-2's released weights",
    ):
        config.addinivalue_line("markers", marker)
    if _runs_suites(config):
        _let_threads_sleep()
    _require_device(config.getoption("--device"))
    Resources.configure(
        device=config.getoption("--device"),
        text=config.getoption("--text"),
        pretrained=config.getoption("--pretrained"),
        records=str((reports_folder(config) / "records").absolute()),
    )
    config.stash[_exit_guard] = ExitGuard()
    config.stash[_exit_guard].install()
    if not hasattr(config, "workerinput"):  # xdist's workers run checks; only the controlling process writes
        config.stash[SESSION] = Session(config)
        config.pluginmanager.register(config.stash[SESSION], "gpt-harness-session")


def _require_device(name: str) -> None:
    """End the run with a usage error, before anything is built or recorded, if the device is not available."""
    if name == DEFAULT_DEVICE:
        return
    from harness.core.devices import require_device  # imports torch, which other projects' runs must not pay for

    try:
        require_device(name)
    except HarnessError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Return where everything runs, if the suites judge a GPT that is not on the CPU, and what is not judged of it."""
    name = config.getoption("--device")
    lines = [
        f"{each}: the architecture that its config.json describes; its weights are not read (see --pretrained)"
        for each in subject_names(config)
        if each.startswith("hf:")
    ]
    if name == DEFAULT_DEVICE or not _runs_suites(config):
        return lines
    from harness.core.devices import device_description, has_float64  # see above

    line = f"device: {device_description(name)}, without TF32; the oracle and training programs are on the CPU"
    return [*lines, line if has_float64(name) else f"{line}, and so is the GPT in float64, which {name} does not have"]


def pytest_unconfigure(config: pytest.Config) -> None:
    """End every process of the run. After a failed run the guard stays, for exit handlers that subjects registered."""
    close_runners(config)
    run_is_over()
    guard = config.stash.get(_exit_guard, None)
    if guard is not None and guard.status == pytest.ExitCode.OK:
        guard.remove()


def _runs_suites(config: pytest.Config) -> bool:
    """Return True if the command line names a folder of suites, or a suite in one."""
    return any(SUITE_FOLDER in Path(argument.split("::")[0]).parts for argument in config.args)


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep, not spin, while they wait. Read once, when torch is loaded.

    If another program runs on the same cores, a spinning thread takes the core from the very thread that it waits for:
    on two shared cores the suites then take three times as long. Verifications time nothing, so they lose nothing.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """End the run with a usage error, in one line, if a subject or its declared deviations cannot be read.

    Raised later, in a worker of xdist, the same error would crash the worker.
    """
    config = session.config
    if config.getoption("collectonly") or hasattr(config, "workerinput"):
        return
    try:
        _require_subjects(config)
    except (OSError, pytest.UsageError) as error:  # OSError: a path that is too long, a folder that may not be entered
        wrong = usage_error(error) if isinstance(error, OSError) else error
        if github_actions.is_running_there():
            _report_to_step(str(wrong))
        raise wrong from None


def _report_to_step(message: str) -> None:
    """Tell GitHub Actions why nothing was judged, at the line that the message names."""
    print(usage_error_line(printable(message)), flush=True)
    with contextlib.suppress(OSError):
        github_actions.write_summary(f"## Nothing was judged\n\n{escape(printable(message))}")


def _require_subjects(config: pytest.Config) -> None:
    """Raise UsageError, with one line, if a subject or its declared deviations cannot be read."""
    own_process = is_isolated(config) or config.getoption("--trainer")
    if config.getoption("--memory-limit") is not None and not own_process:
        raise pytest.UsageError("--memory-limit limits the subject's own process: add --isolate")
    if config.getoption("--deviations") and not subject_names(config):
        raise pytest.UsageError("--deviations FILE is of a GPT, and only a training program is named: add --subject")
    if config.getoption("--deviations") and len(subject_names(config)) > 1:
        raise pytest.UsageError(
            "--deviations FILE takes one --subject; for several, put FILE.deviations.toml beside each FILE.py"
        )
    for name in subject_names(config):
        try:
            deviations_of(config, name)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None
        if config.getoption("--subject") is not None:
            try:
                with lasting_objects(), installed_packages():  # python -m pytest finds a tqdm.py beside the GPT first
                    import harness.judging.runner  # noqa: F401  # torch takes seconds, which are not the subject's

                with _said_while_waiting(config, f"--subject {name}"):
                    unreadable = runner_of(config, name).why_unreadable()
            except HarnessError as error:
                raise pytest.UsageError(f"--subject {name}: {error}") from None
            if unreadable:
                raise pytest.UsageError(printable(f"--subject {name}: {unreadable}"))
    for name in trainer_names(config) if config.getoption("--trainer") is not None else ():
        try:
            trainer_deviations_of(config, name)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None
        try:
            trainer_runner_of(config, name)
        except HarnessError as error:
            raise pytest.UsageError(f"--trainer {name}: {error}") from None


@contextlib.contextmanager
def _said_while_waiting(config: pytest.Config, what: str) -> Iterator[None]:
    """Say on the terminal what is waited for, if it takes long; pytest's own capturing is off meanwhile."""
    capture: Any = config.pluginmanager.getplugin("capturemanager")
    with contextlib.nullcontext() if capture is None else capture.global_and_fixture_disabled(), said_if_slow(what):
        yield


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Fail a run that ended before every check was judged, and give the guard the exit status once it is final."""
    if session.exitstatus == pytest.ExitCode.OK and (number := unjudged(session)):
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
        session.config.stash[SESSION].trouble.append(f"the run ended before {number} of its checks were judged")
    elif session.exitstatus == pytest.ExitCode.OK and only_skipped(session):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED
        session.config.stash[SESSION].trouble.append("nothing was judged: every check was skipped (exit status 5)")
    yield
    found = session.config.stash.get(SESSION, None)
    if session.exitstatus == pytest.ExitCode.OK and found is not None and found.lost:
        session.exitstatus = pytest.ExitCode.INTERNAL_ERROR
    session.config.stash[_exit_guard].finish(int(session.exitstatus))


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> SuiteFile | None:
    """Collect every *.toml in a folder named `verifications`, and every one named on the command line."""
    if file_path.suffix == ".toml" and (SUITE_FOLDER in file_path.parts[-2:-1] or parent.session.isinitpath(file_path)):
        return SuiteFile.from_parent(parent, path=file_path)
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the suites from coarse to fine, each in the order of its file, so that `-x` stops at what explains most."""
    checks = sorted(
        (item for item in items if isinstance(item, CheckItem)), key=lambda item: place_of(item.check.suite)
    )
    in_order = iter(checks)
    items[:] = [next(in_order) if isinstance(item, CheckItem) else item for item in items]


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> None:
    """If one GPT is judged, let it be judged by two processes."""
    own = [item for item in session.items if isinstance(item, CheckItem) and not item.trains]
    if len({item.subject for item in own}) == 1 and not session.config.getoption("collectonly"):
        with contextlib.suppress(HarnessError):  # each check says so
            runner_of(session.config, own[0].subject).run_ahead([item.check for item in own])


def pytest_deselected(items: list[pytest.Item]) -> None:
    """In a worker of xdist, report the number of deselected items to the controlling process."""
    for config in {item.config for item in items}:
        if hasattr(config, "workeroutput"):
            output = config.workeroutput
            output["deselected"] = output.get("deselected", 0) + len(items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """Attach the record to the report, which travels from a worker of xdist to the controlling process."""
    report = yield
    if isinstance(item, CheckItem):
        # A subject that logs or prints megabytes must not bury the verdict.
        report.sections = [(name, shorten(text)) for name, text in report.sections]
        if report.when == "call" and (row := item.row()) is not None:
            report.gpt_harness_row = encode(row)
            if report.skipped:  # a skip is located at the check, not at the line of the harness that skips
                report.longrepr = (str(item.path), item.check.line, printable(row["message"]))
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """Count a check that fails as declared separately: neither passed nor failed."""
    row = getattr(report, "gpt_harness_row", None)
    return ("declared", "d", "DECLARED") if row and row.get("declared") else None
