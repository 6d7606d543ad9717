"""How the comparisons run under pytest: options, one test an arm, each comparison measured once, times replayed."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from benchmarks.replay import CLOCK, UnverifiedError, refuse, replay
from benchmarks.workshop import Workshop
from harness.compare import AGAIN, Budget, Comparison, Finding, Measured, Work, measure
from harness.memory import peak_bytes
from harness.plugin import recorder_of, subject_of
from harness.size import SIZES
from harness.statistics import describe_ratio, describe_seconds, median, spread

FULL_SECONDS, QUICK_SECONDS = 360.0, 70.0
# Two accounts of the same bytes should agree to 5%, or to a megabyte: the kernel counts pages, and not what the heap
# held already.
LEDGER_TOLERANCE, LEDGER_SLACK_BYTES = 0.05, 2**20

_run = pytest.StashKey["Run"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options of the benchmarks; --subject and --reports are the plugin's."""
    group = parser.getgroup("gpt-harness-benchmarks", "comparing arms (gpt-harness)")
    group.addoption("--quick", action="store_true", help="shorter sequences, fewer points, fewer rounds; same model")
    group.addoption(
        "--budget",
        metavar="SECONDS",
        type=_positive(float),
        help=f"time for all comparisons together (default: {FULL_SECONDS:.0f}, with --quick {QUICK_SECONDS:.0f}); "
        "every comparison gets four rounds whatever they take",
    )
    group.addoption("--device", default="cpu", help="where the arms run: cpu (default), cuda, cuda:1 ...")
    group.addoption("--threads", metavar="N", type=_positive(int), help="threads of torch (default: its own choice)")
    group.addoption(
        "--size", default="124M", choices=sorted(SIZES), help="the size of the model (default: %(default)s)"
    )


def _positive(kind: type) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        value = kind(text)
        if not value > 0:
            raise ValueError(f"{text} is not positive")
        return value

    parse.__name__ = f"positive {kind.__name__}"  # argparse's word for it in its error
    return parse


def pytest_configure(config: pytest.Config) -> None:
    """Threads and the device are set before anything is built or recorded."""
    config.addinivalue_line(
        "markers", "compares(arms, points, quick, axis, weight, any_length, prompt): one test a point and an arm"
    )
    if config.getoption("--threads"):
        torch.set_num_threads(config.getoption("--threads"))
    device = config.getoption("--device")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise pytest.UsageError(f"--device {device}: this machine or this torch does not have it ({reason})") from error


def pytest_report_header(config: pytest.Config) -> str:
    """What the times below depend on, and what --quick leaves out."""
    told = (
        f"comparisons: {config.getoption('--size')} model on {config.getoption('--device')}, "
        f"{torch.get_num_threads()} threads, about {_seconds(config):.0f} s"
    )
    quick = "; --quick: shorter sequences, fewer points, wider intervals" if config.getoption("--quick") else ""
    return told + quick


def _seconds(config: pytest.Config) -> float:
    default = QUICK_SECONDS if config.getoption("--quick") else FULL_SECONDS
    return float(config.getoption("--budget") or default)


@dataclass(frozen=True)
class Key:
    """One comparison: the test function that declares it, and the point."""

    function: str
    point: int | None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test a point and an arm. The first point has the control's twin among its rows."""
    marker = metafunc.definition.get_closest_marker("compares")
    if marker is None:
        return
    quick = metafunc.config.getoption("--quick")
    points = marker.kwargs["quick"] if quick else marker.kwargs["points"]
    if not marker.kwargs.get("any_length", False):
        room = SIZES[metafunc.config.getoption("--size")].context - marker.kwargs.get("prompt", 0)
        points = [point for point in points if point is None or point <= room] or [room]
    arms, axis = marker.kwargs["arms"], marker.kwargs.get("axis")
    cases = []
    for point in points:
        rows = (*arms, arms[0] + AGAIN) if point == points[0] else arms
        where = "" if point is None else f"{axis}={point}-".replace(" ", "-")
        group = f"{metafunc.module.__name__.rpartition('test_')[2]}: {metafunc.function.__name__[5:].replace('_', ' ')}"
        group += "" if point is None else f", {axis}={point}"
        timed = pytest.mark.benchmark(timer=CLOCK, group=group)
        cases += [pytest.param(point, arm, id=f"{where}{arm}", marks=timed) for arm in rows]
    metafunc.parametrize(("point", "arm"), cases)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Note which arms of each comparison are left after -k and the like: those are measured, with their control."""
    run = session.config.stash[_run] = Run(session.config)
    for item in session.items:
        marker = item.get_closest_marker("compares")
        if marker is not None and isinstance(item, pytest.Function):
            run.selected.setdefault(_key(item), []).append(str(item.callspec.params["arm"]))
            run.weights[_key(item)] = marker.kwargs.get("weight", 1.0)
    # Every run needs an A/A ratio: how far apart two identical arms came out is what the others are worth.
    if run.selected and not any(arm.endswith(AGAIN) for arms in run.selected.values() for arm in arms):
        next(iter(run.selected.values())).append(AGAIN)


def _key(item: pytest.Function) -> Key:
    point = item.callspec.params["point"]
    assert point is None or isinstance(point, int)
    return Key(item.nodeid.partition("[")[0], point)


@dataclass
class Run:
    """What the tests of one run share: the selection, the budget, and the comparisons that are done."""

    config: pytest.Config
    selected: dict[Key, list[str]] = field(default_factory=dict)
    weights: dict[Key, float] = field(default_factory=dict)
    measured: dict[Key, Measured] = field(default_factory=dict)
    budget: Budget | None = None

    def allot(self, key: Key) -> float:
        """The seconds for the comparison that begins now."""
        if self.budget is None:
            self.budget = Budget(_seconds(self.config), list(self.weights.values()))
        return self.budget.allot(self.weights[key])


@pytest.fixture(scope="module")
def workshop(request: pytest.FixtureRequest) -> Iterator[Workshop]:
    """The models of one module's comparisons; gone with its last test."""
    config = request.config
    made = Workshop(subject_of(config), SIZES[config.getoption("--size")], config.getoption("--device"))
    yield made
    made.close()


@pytest.fixture
def compare(request: pytest.FixtureRequest, benchmark: Any, arm: str) -> Callable[[Comparison], None]:
    """`compare(comparison)` measures it, if no test of the same comparison has, and reports this test's arm."""
    config, key = request.config, _key(request.node)
    run = config.stash[_run]

    def compare(comparison: Comparison) -> None:
        if not benchmark.enabled:
            pytest.skip(_why_disabled(config))
        if key not in run.measured:
            run.measured[key] = _measure(run, key, comparison)
        _report(run.measured[key], arm, benchmark)

    return compare


def _why_disabled(config: pytest.Config) -> str:
    if hasattr(config, "workerinput"):
        return "pytest-benchmark is off under xdist: arms that run in parallel disturb each other; run without -n"
    return "pytest-benchmark is off (--benchmark-disable)"


def _measure(run: Run, key: Key, comparison: Comparison) -> Measured:
    device, started = run.config.getoption("--device"), time.perf_counter()
    only = {comparison.control + AGAIN if arm == AGAIN else arm for arm in run.selected[key]}

    def peak(work: Work) -> dict[str, int]:
        work.prepare()
        return peak_bytes(work.call, device=device)

    measured = measure(comparison, only=only, seconds=run.allot(key), clock=_clock(device), peak=peak)
    # The judge holds float64 logits, hundreds of MB; it has spoken.
    measured.comparison = dataclasses.replace(comparison, verify=_spoken)
    row = {
        **measured.row(),
        "subject": subject_of(run.config).name,
        "size": run.config.getoption("--size"),
        "device": device,
        "threads": torch.get_num_threads(),
        "quick": run.config.getoption("--quick"),
        "wall_seconds": time.perf_counter() - started,
    }
    recorder_of(run.config).write(row)
    _tell(run.config, measured, row["wall_seconds"])
    return measured


def _spoken(name: str, work: Work) -> Finding:
    raise AssertionError("a comparison is verified once")


def _clock(device: str) -> Callable[[], float]:
    """A clock that waits for the device: CUDA's kernels are still running when the call has returned."""
    if torch.device(device).type != "cuda":
        return time.perf_counter

    def clock() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return clock


def _report(measured: Measured, arm: str, benchmark: Any) -> None:
    """This arm's row, or why it has none."""
    finding = measured.findings[arm]
    if finding.verdict == "skip":
        pytest.skip(finding.message)
    if finding.verdict != "pass":
        try:
            refuse(benchmark, finding.message)
        except UnverifiedError:
            told = f"{measured.comparison.label}, {arm}: unverified, so no time is shown: {finding.message}"
            pytest.fail(told, pytrace=False)
    row = next(row for row in measured.row()["arms"] if row["arm"] == arm)
    kept = ("tokens_per_second", "peak_memory_bytes", "peak_memory_ledger", "positions", "positions_closed_form")
    info = {key: row[key] for key in kept if row[key] is not None}
    info |= {"verified": finding.message, "threads": torch.get_num_threads()}
    info |= {"calls_per_block": measured.calls_per_block, "stopped": measured.stopped}
    if arm in measured.ratios:
        info["ratio"] = f"{describe_ratio(measured.ratios[arm])} against {measured.against(arm)}"
    replay(benchmark, measured.seconds[arm], info)


def _tell(config: pytest.Config, measured: Measured, wall: float) -> None:
    """Show a comparison in the terminal as soon as it is measured, whatever pytest captures."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    capture = config.pluginmanager.get_plugin("capturemanager")
    if terminal is None:  # -p no:terminal
        return
    rounds, calls = len(next(iter(measured.seconds.values()), [])), measured.calls_per_block
    told = f"{rounds} rounds of {calls} calls" if calls > 1 else f"{rounds} long calls"
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        terminal.ensure_newline()
        terminal.write_line(f"{measured.comparison.label} ({told} each, {wall:.0f} s)", bold=True)
        for name in measured.findings:
            terminal.write_line(f"  {name:<15} {_line(measured, name)}")


def _line(measured: Measured, name: str) -> str:
    finding, seconds = measured.findings[name], measured.seconds.get(name)
    if not seconds:
        return f"{'unverified' if finding.verdict == 'fail' else finding.verdict}: {finding.message}"
    parts = [f"{describe_seconds(median(seconds), spread(seconds)):<19}", f"{_rate(measured, name):>14}"]
    if name in measured.ratios:
        parts.append(describe_ratio(measured.ratios[name]))
    elif name == measured.comparison.control:
        parts.append("the control")
    if "positions" in finding.witness:
        parts.append(f"{finding.witness['positions']:,} positions")
    if ledgers := measured.ledgers.get(name):
        parts.append(_peaks(ledgers))
    return "  ".join(parts)


def _rate(measured: Measured, name: str) -> str:
    rate = measured.tokens[name] / median(measured.seconds[name])
    return f"{rate:,.0f} tokens/s" if rate >= 100 else f"{rate:.1f} tokens/s"


def _peaks(ledgers: dict[str, int]) -> str:
    """The exact peak, and every other ledger that says something else."""
    exact = next(iter(ledgers.values()))
    others = [
        f"{name} says {count / 2**20:.2f}"
        for name, count in list(ledgers.items())[1:]
        if name != "reserved" and abs(count - exact) > max(LEDGER_TOLERANCE * exact, LEDGER_SLACK_BYTES)
    ]
    return f"peak {exact / 2**20:.2f} MiB" + (f" ({', '.join(others)})" if others else "")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """The A/A arms: what this run makes of two identical arms."""
    run = config.stash.get(_run, None)
    if run is None or not run.measured:
        return
    twins = {
        measured.comparison.label: measured.ratios[name]
        for measured in run.measured.values()
        for name in measured.ratios
        if name.endswith(AGAIN)
    }
    flagged = {label: ratio for label, ratio in twins.items() if ratio.verdict in ("FASTER", "SLOWER")}
    terminalreporter.section("identical arms (A/A)")
    terminalreporter.write_line(f"{len(twins)} pairs of identical arms, {len(flagged)} called different")
    for label, ratio in flagged.items():
        terminalreporter.write_line(f"  {label}: {describe_ratio(ratio)}", red=True)
