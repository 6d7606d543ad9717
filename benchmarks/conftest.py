"""The comparisons under pytest: the options, one test an arm and point, and the times as pytest-benchmark's rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from benchmarks.replay import CLOCK, UnverifiedError, refuse, replay
from benchmarks.run import FULL_SECONDS, QUICK_SECONDS, Key, Run, load, seconds
from benchmarks.workshop import Workshop
from harness.compare import AGAIN, Comparison, Measured
from harness.plugin import subject_of
from harness.size import SIZES
from harness.statistics import describe_ratio

_run = pytest.StashKey[Run]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the benchmarks; --subject and --reports are the plugin's."""
    group = parser.getgroup("gpt-harness-benchmarks", "comparing arms (gpt-harness)")
    group.addoption(
        "--quick", action="store_true", help="shorter sequences, fewer points, wider intervals; the same model"
    )
    group.addoption(
        "--budget",
        metavar="SECONDS",
        type=_positive(float),
        help=f"time for all comparisons together (default: {FULL_SECONDS:.0f}, with --quick {QUICK_SECONDS:.0f}); "
        "every comparison gets four rounds, whatever they take",
    )
    group.addoption("--device", default="cpu", help="where the arms run: cpu (default), cuda, cuda:1 ...")
    group.addoption("--threads", metavar="N", type=_positive(int), help="threads of torch (default: its own choice)")
    group.addoption("--size", default="124M", choices=list(SIZES), help="the size of the model (default: %(default)s)")


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError(f"{text} is not positive")
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse's word for it in its error
    return parse


def pytest_configure(config: pytest.Config) -> None:
    """Threads and the device are settled before anything is built or recorded."""
    config.addinivalue_line(
        "markers", "compares(arms, points, quick, axis, weight, prompt, any_length): one test a point and an arm"
    )
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))
    device = config.getoption("--device")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise pytest.UsageError(f"--device {device}: not on this machine, or not in this torch ({reason})") from error


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What the times below depend on, what --quick leaves out, and whether other work will disturb them."""
    threads, busy = torch.get_num_threads(), load() or 0.0
    told = [
        f"comparisons: the {config.getoption('--size')} model on {config.getoption('--device')}, {threads} threads, "
        f"about {seconds(config):.0f} s"
    ]
    if config.getoption("--quick"):
        told.append("--quick: shorter sequences, fewer points, wider intervals; the same model")
    if busy > 0.5:
        told.append(
            f"other work is going on (load {busy:.1f}): this takes longer and resolves less; --threads 1 suffers least"
        )
    return told


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a point and an arm; at the first point the twin of the control, too (with --quick, if cheap)."""
    marker = metafunc.definition.get_closest_marker("compares")
    if marker is None:
        return
    asked = marker.kwargs
    quick = metafunc.config.getoption("--quick")
    points = asked["quick"] if quick else asked["points"]
    twin = [] if quick and asked.get("weight", 1) > 1 else [asked["arms"][0] + AGAIN]
    if not asked.get("any_length", False):
        room = SIZES[metafunc.config.getoption("--size")].context - asked.get("prompt", 0)
        points = [point for point in points if point is None or point <= room] or [room]
    metafunc.parametrize(
        ("point", "arm"),
        [
            _case(metafunc, point, arm, asked.get("axis"))
            for point in points
            for arm in (*asked["arms"], *(twin if point == points[0] else []))
        ],
    )


def _case(metafunc: pytest.Metafunc, point: int | None, arm: str, axis: str | None) -> Any:
    where = f"{axis}={point}" if point is not None else ""
    module, function = metafunc.module.__name__.rpartition("test_")[2], metafunc.function.__name__
    group = f"{module}: {function.removeprefix('test_').replace('_', ' ')}{', ' if where else ''}{where}"
    name = f"{where.replace(' ', '-')}-{arm}" if where else arm
    return pytest.param(point, arm, id=name, marks=pytest.mark.benchmark(timer=CLOCK, group=group))


def pytest_collection_finish(session: pytest.Session) -> None:
    """Only now is it known which arms this run is asked for."""
    run = session.config.stash[_run] = Run(session.config)
    run.select(session.items)


@pytest.fixture(scope="module")
def workshop(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """The models of one module's comparisons; gone with its last test."""
    config = request.config
    made = Workshop(subject_of(config), SIZES[config.getoption("--size")], config.getoption("--device"))
    yield made
    made.close()


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any, arm: str) -> Callable[[Comparison], None]:
    """`compare(comparison)` has it measured, unless another of its arms has, and reports this test's arm."""
    config = request.config

    def compare(comparison: Comparison) -> None:
        if not benchmark.enabled:
            pytest.skip(_why_disabled(config))
        _report(config.stash[_run].measure(Key.of(request.node), comparison), arm, benchmark)

    return compare


def _why_disabled(config: pytest.Config) -> str:
    if hasattr(config, "workerinput"):
        return "pytest-benchmark is off under xdist: arms that run in parallel disturb each other; run without -n"
    return "pytest-benchmark is off (--benchmark-disable)"


def _report(measured: Measured, arm: str, benchmark: Any) -> None:
    """This arm's row in the table, or why it has none."""
    finding = measured.findings[arm]
    if finding.verdict == "skip":
        pytest.skip(finding.message)
    if finding.verdict != "pass":
        try:
            refuse(benchmark, finding.message)
        except UnverifiedError:
            told = f"{measured.comparison.label}, {arm}: unverified, so no time is shown: {finding.message}"
            pytest.fail(told, pytrace=False)
    replay(benchmark, measured.seconds[arm], _extra_info(measured, arm))


def _extra_info(measured: Measured, arm: str) -> dict[str, Any]:
    row = next(row for row in measured.row()["arms"] if row["arm"] == arm)
    kept = ("tokens_per_second", "peak_memory_bytes", "peak_memory_ledger", "positions", "positions_closed_form")
    info = {
        "verified": measured.findings[arm].message,
        "threads": torch.get_num_threads(),
        "calls_per_block": measured.calls_per_block,
        "stopped": measured.stopped,
        **{key: row[key] for key in kept if row[key] is not None},
    }
    if arm in measured.ratios:
        info["ratio"] = f"{describe_ratio(measured.ratios[arm])} against {measured.against(arm)}"
    return info


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """What this run makes of two identical arms."""
    run = config.stash.get(_run, None)
    if run is None or not run.measured:
        return
    twins = run.twins()
    flagged = {label: ratio for label, ratio in twins.items() if ratio.verdict in ("FASTER", "SLOWER")}
    terminalreporter.section("identical arms (A/A)")
    terminalreporter.write_line(f"{len(twins)} pairs of identical arms, {len(flagged)} called different")
    for label, ratio in flagged.items():
        terminalreporter.write_line(f"  {label}: {describe_ratio(ratio)}", red=True)
