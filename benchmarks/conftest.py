"""The comparisons in pytest: options, one test for each arm and point, and the times as rows of pytest-benchmark."""

from __future__ import annotations

import argparse
import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.budget import FULL_SECONDS, QUICK_SECONDS, RESOLVE_SECONDS, effect_to_resolve, total_seconds
from benchmarks.replay import CLOCK, UnverifiedError, refuse, replay
from benchmarks.run import ComparisonRunner, load_average
from benchmarks.show import label, ratio_of
from harness.bench.arms import DeclaredComparison, read_comparisons
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.statistics import describe_ratio
from harness.core.environment import enable_huge_pages
from harness.core.errors import SuiteError, did_you_mean
from harness.core.record_files import Row
from harness.core.sizes import SIZES
from harness.pytest_plugin.options import LONGEST_LIMIT, number_between, subject_names

_run = pytest.StashKey[ComparisonRunner]()
_declared = pytest.StashKey[Mapping[str, DeclaredComparison]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the benchmarks; --subject, --device and --reports come from the plugin."""
    group = parser.getgroup("gpt-harness-benchmarks", "comparing arms (gpt-harness)")
    group.addoption(
        "--quick", action="store_true", help="shorter sequences, fewer points, wider intervals; the same model"
    )
    group.addoption(
        "--budget",
        metavar="SECONDS",
        type=number_between(1, LONGEST_LIMIT, "seconds"),
        help=f"timing of all comparisons together (default: {FULL_SECONDS:.0f}, with --quick {QUICK_SECONDS:.0f}); "
        "each comparison gets at least four rounds (eight short ones); building and verifying take additional time",
    )
    group.addoption(
        "--resolve",
        metavar="PERCENT",
        type=effect_to_resolve,
        help="go on until every ratio is known well enough to decide about a difference of PERCENT, such as 5%%, or "
        f"--budget is spent, or one comparison has taken {RESOLVE_SECONDS / 60:.0f} minutes",
    )
    group.addoption("--threads", metavar="N", type=_threads, help="threads of torch (default: torch's choice)")
    group.addoption("--nanogpt", metavar="PATH", help="a copy of nanoGPT (the folder, or its model.py) as a peer")
    group.addoption(
        "--fresh", action="store_true", help="measure everything again instead of resuming an interrupted run"
    )
    group.addoption("--size", default="124M", choices=list(SIZES), help="the size of the model (default: %(default)s)")


def _threads(text: str) -> int:
    """Return a number of threads; torch ends the process if the system refuses so many."""
    most = max(64, 4 * (os.cpu_count() or 1))
    if not text.isdecimal() or not 1 <= int(text) <= most:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number of threads between 1 and {most}")
    return int(text)


def pytest_configure(config: pytest.Config) -> None:
    """Set threads and pages, before anything is built or recorded; the plugin has checked the device."""
    if len(subject_names(config)) > 1 or config.getoption("--isolate"):
        raise pytest.UsageError(
            "benchmarks take one --subject and run in this process: remove --isolate and further subjects"
        )
    config.option.isolate = False  # also of suites that are named beside the benchmarks
    try:
        config.stash[_declared] = {found.label: found for found in read_comparisons(Path(__file__).parent)}
    except SuiteError as error:
        raise pytest.UsageError(str(error)) from None
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))
    enable_huge_pages()


def pytest_report_header(config: pytest.Config) -> list[str]:
    """Return what the times depend on, what --quick leaves out, and whether other work will disturb them."""
    threads, busy = torch.get_num_threads(), load_average() or 0.0
    lines = [
        f"comparisons: the {config.getoption('--size')} model on {config.getoption('--device')}, {threads} threads, "
        f"about {total_seconds(config):.0f} s of timing; building, verifying and profiling come on top"
    ]
    if config.getoption("--quick"):
        lines.append("--quick: shorter sequences, fewer points, wider intervals; the same model")
    if busy > 0.5:
        lines.append(
            f"other processes are running (load {busy:.1f}): this takes longer and the intervals are wider; "
            "--threads 1 is affected least"
        )
    return lines


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Make one test for each comparison, point and arm, and for the twin of the control at the first point."""
    if "comparison" not in metafunc.fixturenames:
        return
    config, size = metafunc.config, SIZES[metafunc.config.getoption("--size")]
    declared = config.stash[_declared].values()
    metafunc.parametrize(
        ("comparison", "point", "arm"),
        [
            _case(comparison, point, arm)
            for comparison in declared
            for number, point in enumerate(comparison.points_for(size, quick=config.getoption("--quick")))
            for arm in (*comparison.arms, *_twins(comparison, first=number == 0))
        ],
    )


def _twins(comparison: DeclaredComparison, *, first: bool) -> list[str]:
    return [comparison.control + TWIN_SUFFIX] if comparison.twin and first else []


def _case(declared: DeclaredComparison, point: int | None, arm: str) -> Any:
    where = "" if point is None else f"{declared.axis}={point}".replace("_", " ")
    group = f"{declared.suite}: {declared.name}{', ' if where else ''}{where}"
    name = "-".join(word for word in (declared.suite, declared.name, where, arm) if word).replace(" ", "-")
    return pytest.param(declared.label, point, arm, id=name, marks=pytest.mark.benchmark(timer=CLOCK, group=group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Select the arms that are left after -k and the like."""
    run = session.config.stash[_run] = ComparisonRunner(session.config, session.config.stash.get(_declared, {}))
    run.select(session.items)


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any) -> Callable[[str, int | None, str], None]:
    """Return `compare(comparison, point, arm)`, which measures the comparison once and reports the arm."""
    config = request.config

    def compare(comparison: str, point: int | None, arm: str) -> None:
        if not benchmark.enabled:
            pytest.skip(_why_disabled(config))
        _report(config.stash[_run].measure(comparison, point), arm, benchmark)

    return compare


def _why_disabled(config: pytest.Config) -> str:
    if hasattr(config, "workerinput"):
        return "pytest-benchmark is off under xdist: arms that run in parallel disturb each other; run without -n"
    return "pytest-benchmark is off (--benchmark-disable)"


def _report(row: Row, name: str, benchmark: Any) -> None:
    """Add this arm's row to the table, or fail or skip with the reason why it has none."""
    arm = next(arm for arm in row["arms"] if arm["arm"] == name)
    verified = arm["verified"]
    if verified["verdict"] == "skip":
        pytest.skip(verified["message"])
    if verified["verdict"] != "pass":
        with contextlib.suppress(UnverifiedError):
            refuse(benchmark, verified["message"])
        message = f"{label(row)}, {name}: unverified, so no time is shown: {verified['message']}"
        pytest.fail(message, pytrace=False)
    replay(benchmark, arm["seconds"], _extra_info(row, arm))


def _extra_info(row: Row, arm: Row) -> dict[str, Any]:
    keys = ("tokens_per_second", "peak_memory_bytes", "peak_memory_ledger", "positions", "positions_closed_form")
    info = {
        "verified": arm["verified"]["message"],
        "threads": row["threads"],
        "calls_per_block": row["calls_per_block"],
        "stopped": row["stopped"],
        **{key: arm[key] for key in keys if arm[key] is not None},
        **(arm.get("extras") or {}),
    }
    if (ceiling := arm.get("ceiling")) is not None:
        info["ceiling"] = f"{ceiling['fraction']:.0%} of {ceiling['name']}"
    for found in row["ratios"]:
        if found["arm"] == arm["arm"]:
            info["ratio"] = f"{describe_ratio(ratio_of(found))}, compared with {found['against']}"
    return info


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write what all comparisons say together to the record, before the report is written."""
    run = session.config.stash.get(_run, None)
    if run is not None:
        run.finish()


def _nothing_selected(config: pytest.Config) -> str:
    declared, word = config.stash[_declared].values(), config.getoption("keyword")
    left_out = [one.label for one in declared if word in one.label]
    if config.getoption("--quick") and left_out:
        return f"-k '{word}' selects no arm: --quick leaves out {', '.join(left_out)}"
    known = {word for one in declared for label in (one.label, *one.arms) for word in label.split()}
    return f"-k '{word}' selects no arm; {did_you_mean(word, known)} --collect-only lists all of them"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the run's false alarms on identical arms, and its comparisons with closed forms."""
    run = config.stash.get(_run, None)
    if run is not None and not run.selected and config.getoption("keyword"):
        terminalreporter.write_line(_nothing_selected(config))
    if run is None or not run.rows:
        return
    for line, bad in run.summary():
        if line.startswith("#"):
            terminalreporter.section(line[2:])
        else:
            terminalreporter.write_line(line, red=bad)
