"""The pytest plugin: hooks only. Suites become test items, records go to disk, the reports follow."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from harness.core.errors import HarnessError
from harness.core.limits import MEMORY_SHARE, SECONDS
from harness.core.process_exit import ExitGuard
from harness.pytest_plugin.items import CheckItem, SuiteFile
from harness.pytest_plugin.session import Session

if TYPE_CHECKING:
    from harness.judging.runner import Runner
    from harness.oracle.deviations import Deviation
    from harness.pytest_plugin.session import Writer
    from harness.subjects.model import Subject

# A name, not an import: the harness knows no particular GPT, but a run without --subject judges the reference.
DEFAULT_SUBJECT = "gpt:GPT"
SUITE_FOLDER = "verifications"

_runners = pytest.StashKey[dict[str, "Runner"]]()
_session = pytest.StashKey[Session]()
_exit_guard = pytest.StashKey[ExitGuard]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options that the suites and the benchmarks share."""
    group = parser.getgroup("gpt-harness", "judging a GPT (gpt-harness)")
    group.addoption(
        "--subject",
        metavar="FILE.py:NAME",
        action="append",
        help=f"the GPT to judge: FILE.py:NAME or package.module:NAME (default: {DEFAULT_SUBJECT}, the reference); "
        "given several times, they are judged side by side",
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
    group.addoption(
        "--deviations",
        metavar="FILE.toml",
        help="where the subject differs on purpose (default: my_gpt.deviations.toml beside my_gpt.py)",
    )
    group.addoption(
        "--isolate",
        action="store_true",
        help="run the subject in a process of its own, which may exit, crash, hang or grow without ending the run",
    )
    group.addoption(
        "--time-limit",
        metavar="SECONDS",
        type=float,
        default=SECONDS,
        help="for one check; 0 is none (default: %(default)g)",
    )
    group.addoption(
        "--memory-limit",
        metavar="GIB",
        type=float,
        help=f"for an isolated subject's process (default: {MEMORY_SHARE:g} of the machine's memory)",
    )
    group.addoption("--full-failures", action="store_true", help="tell every failure in full, not the first few")
    group.addoption("--no-diagnosis", action="store_true", help="do not look for the cause of what failed")


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
    from harness.core.resources import Resources

    Resources.configure(text=config.getoption("--text"), pretrained=config.getoption("--pretrained"))
    config.stash[_runners] = {}
    config.stash[_exit_guard] = ExitGuard()
    config.stash[_exit_guard].install()
    if not hasattr(config, "workerinput"):
        config.stash[_session] = Session(config)
        config.pluginmanager.register(config.stash[_session], "gpt-harness-session")


def pytest_unconfigure(config: pytest.Config) -> None:
    """End every process of the run. After a failed run the guard stays, for exit handlers that subjects registered."""
    for runner in config.stash.get(_runners, {}).values():
        runner.close()
    guard = config.stash.get(_exit_guard, None)
    if guard is not None and guard.status == pytest.ExitCode.OK:
        guard.remove()


def _let_threads_sleep() -> None:
    """Have OpenMP's threads sleep, not spin, while they wait; it is read once, when torch is loaded.

    With another program on the same cores a spinning thread keeps from work the very one that it waits for: on two
    shared cores the suites then take three times as long. Timings are not for suites, so nothing here depends on it.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """A --subject that cannot be had ends the run here, in one line; in an xdist worker it would crash the worker.

    So does a declaration of deviations that is not understood.
    """
    config = session.config
    if config.getoption("collectonly") or hasattr(config, "workerinput"):
        return
    if config.getoption("--memory-limit") is not None and not config.getoption("--isolate"):
        raise pytest.UsageError("--memory-limit holds for a process of the subject's own: add --isolate")
    if config.getoption("--deviations") and len(subject_names(config)) > 1:
        raise pytest.UsageError("--deviations FILE is one subject's; beside FILE.py it is FILE.deviations.toml")
    for name in subject_names(config):
        try:
            deviations_of(config, name)
        except HarnessError as error:
            raise pytest.UsageError(str(error)) from None
        if config.getoption("--subject") is not None:
            try:
                runner_of(config, name)
            except HarnessError as error:
                raise pytest.UsageError(f"--subject {name}: {error}") from None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Tell the guard how the run ended, once every other plugin has had its say."""
    yield
    session.config.stash[_exit_guard].finish(int(session.exitstatus))


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
    if isinstance(item, CheckItem):
        from harness.core.captured_output import cut
        from harness.core.record_files import encode

        # A subject that logs or prints megabytes is not to bury the verdict under them.
        report.sections = [(name, cut(text)) for name, text in report.sections]
        if report.when == "call" and (row := item.row()) is not None:
            report.gpt_harness_row = encode(row)
            if report.skipped:  # by name, where the check stands, not where the harness skips
                report.longrepr = (str(item.path), item.check.line, row["message"])
    return report


def pytest_report_teststatus(report: pytest.TestReport) -> tuple[str, str, str] | None:
    """A check that fails as declared counts apart: it is neither passed nor failed."""
    row = getattr(report, "gpt_harness_row", None)
    return ("declared", "d", "DECLARED") if row and row.get("declared") else None


def subject_names(config: pytest.Config) -> list[str]:
    """What the user names, or the reference; an empty name is not the reference (`--subject "$UNSET"`)."""
    named = config.getoption("--subject")
    return [DEFAULT_SUBJECT] if named is None else list(dict.fromkeys(map(str, named)))


def subject_name(config: pytest.Config) -> str:
    """All of them, as the header of the records has it."""
    return ", ".join(subject_names(config))


def subject_of(config: pytest.Config) -> Subject:
    """The subject of a benchmark run, looked up once. Raises SubjectError."""
    from harness.core.errors import SubjectError
    from harness.judging.runner import InProcessJudge

    names = subject_names(config)
    bench = runner_of(config, names[0]).bench
    if len(names) > 1 or not isinstance(bench, InProcessJudge):
        raise SubjectError("benchmarks are of one --subject, without --isolate")
    return bench.subject


def runner_of(config: pytest.Config, name: str) -> Runner:
    """The judge of one subject, made once. Raises SubjectError where the subject cannot be had."""
    runners = config.stash[_runners]
    if name not in runners:
        from harness.judging.runner import make_runner

        runners[name] = make_runner(
            name,
            isolate=config.getoption("--isolate"),
            seconds=config.getoption("--time-limit") or None,
            memory_gib=config.getoption("--memory-limit"),
            echo=config.getoption("capture") == "no",
            own=config.getoption("--subject") is not None,
            deviations=deviations_of(config, name),
        )
    return runners[name]


def deviations_of(config: pytest.Config, name: str) -> tuple[Deviation, ...]:
    """What the subject declares, in the file that is named or in the one beside it. Raises DeviationError."""
    from harness.oracle.deviations import beside, read

    named = config.getoption("--deviations")
    path = Path(named) if named else beside(name)
    return read(path) if path else ()


def recorder_of(config: pytest.Config) -> Writer:
    """Where a benchmark writes its comparisons: `recorder_of(config).write(row)`."""
    return config.stash[_session].writer("bench")
