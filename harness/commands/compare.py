"""`gpt-harness compare`: two benchmark runs side by side, and an exit status for a gate in CI."""

from __future__ import annotations

import argparse
import collections
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core import github_actions
from harness.core.errors import HarnessError
from harness.core.printable import printable
from harness.history.benchmark_runs import ArmKey, BenchmarkRun, ceiling_seconds, find_runs, read_run
from harness.history.change_estimates import BETWEEN_RUNS
from harness.history.compare_runs import ALPHA, Change, RunComparison, compare
from harness.history.gates import FIELDS, Gate
from harness.report.formatting import plural

A_RUN = (
    "a record file, a folder of them, `latest`, `latest~1`, or the beginning of a run's time (20261122T17); several "
    "with commas between"
)
# The settings that each comparison's row records; those of the machine are in the header of the file.
SETTINGS, MACHINE = ("subject", "device", "threads", "quick"), ("cpu", "torch", "gpu", "huge_pages", "preloaded")
OTHER_LOAD = 0.5  # processes that wanted a core besides this one's threads
COLUMNS = (*ArmKey._fields, "against", "A", "B", "change", "low", "high", "p", "verdict")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness compare A B [-k WORDS] [--against WHAT] [--fail-if slower:5%]`."""
    command = commands.add_parser(
        "compare",
        help="compare every arm of two benchmark runs",
        description="Compare benchmark runs, of different days or machines too, by the ratio of each arm to what the "
        "same run measured beside it. Exit status 1 if a --fail-if is met, or if with one an arm that is now wrong has "
        "lost its time or a run ended early. In GitHub Actions the table goes to the page of the step too.",
    )
    command.add_argument("before", metavar="A", help=A_RUN)
    command.add_argument("after", metavar="B", help="the same, for the runs that are compared with A")
    command.add_argument("-k", dest="words", default="", metavar="WORDS", help="only arms whose line has all WORDS")
    command.add_argument(
        "--against", choices=("yardstick", "control"),
        help="compare arms with the run's first ceiling, or with its control (default: the first if both runs have it)",
    )  # fmt: skip
    command.add_argument(
        "--fail-if", dest="gates", type=_gate, action="append", default=[], metavar="WHAT",
        help="slower:5%%, memory:5%% or error:2x: exit status 1 if an arm grew by more; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--records", type=Path, default=Path("reports/records"), metavar="DIR", help="where runs are (%(default)s)"
    )
    command.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table there as well")
    command.set_defaults(run=run)


def _gate(text: str) -> Gate:
    try:
        return Gate.parse(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(options: argparse.Namespace) -> int:
    """Print the table, its limits, and the result of each gate; 1 if a gate failed."""
    before, after = (
        [read_run(path) for path in find_runs(name, options.records)] for name in (options.before, options.after)
    )
    result = compare(before, after, words=options.words, against=options.against)
    lines = [*heading(before, after), "", *table(result), "", *limits(before, after, result)]
    failures = list(failures_of_runs([*before, *after], result)) if options.gates else []
    try:
        for gate in options.gates:
            if failures and not gate.applicable(result.changes):
                continue  # all arms may have lost their time
            line, exceeded = apply_gate(gate, result.changes)
            (failures if exceeded else lines).append(line)
    finally:
        lines, failures = (list(map(one_line, each)) for each in (lines, failures))
        print("\n".join([*lines, *failures]))
        report_to_step([*lines, *failures], failures)
    if options.output:
        write_csv(options.output, result.changes)
    return int(bool(failures))


def failures_of_runs(runs: Sequence[BenchmarkRun], result: RunComparison) -> Iterator[str]:
    """Yield the reasons for which no gate can pass: arms that lost their time, and runs that ended early."""
    if result.lost:
        lost = "; ".join(f"{key.label} ({result.left_out[key]})" for key in result.lost)
        yield f"--fail-if: FAILED by arms with a time in A and none in B: {lost}"
    if early := [run.path.stem for run in runs if run.interrupted]:
        yield f"--fail-if: FAILED because {', '.join(early)} ended early: run it again, or leave it out"


def one_line(text: str) -> str:
    """Return what records say without control characters, and on one line: GitHub obeys a line that begins with ::."""
    return printable(text).replace("\n", " ")


def report_to_step(lines: Sequence[str], failures: Sequence[str]) -> None:
    """In GitHub Actions, annotate the failures and append the table to the page of the step."""
    if github_actions.is_running_there():
        for failure in failures:
            print(github_actions.command(failure, title="gpt-harness compare"))
        text = "\n".join(lines).replace("~~~", "~ ~")
        github_actions.write_summary(f"## Benchmarks compared\n\n~~~\n{text}\n~~~")


def heading(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Yield a line for each run: its side, file, subject and commit."""
    for side, runs in (("A", before), ("B", after)):
        for run in runs:
            environment = run.header.get("environment") or {}
            commit = environment.get("git_commit") or "no commit"
            changed = ", changed" if environment.get("git_dirty") else ""
            yield f"{side}  {run.path.stem}  {_join(_values(run, 'subject'))} at {commit}{changed}"


def table(result: RunComparison) -> Iterator[str]:
    """Yield a line for each arm, under its comparison: its time in A and B over the reference's, and the change."""
    width = max((len(change.key.arm) for change in result.changes), default=0)
    for (title, against), changes in itertools.groupby(result.changes, key=_title):
        yield f"{title}, in times of {against}"
        for change in changes:
            memory = change.exact.get("peak_memory_bytes", (0.0, 0.0))
            more = f"  peak memory {memory[1] / memory[0]:.3g}x" if memory[0] and memory[0] != memory[1] else ""
            figures = f"A {change.before:<9.4g} B {change.after:<9.4g} {change.describe()}{more}"
            yield f"  {change.key.arm:<{width}}  {figures}"
    for key, reason in result.left_out.items():
        yield f"not compared: {key.label}: {reason}"
    for side, keys in result.absent.items():
        if keys:
            counts = collections.Counter(f"{key.comparison} {key.metric}" for key in keys)
            found = ", ".join(f"{name} ({plural(number, 'arm')})" for name, number in counts.items())
            yield f"not compared: absent in {side}: {found}"


def _title(change: Change) -> tuple[str, str]:
    return change.key.label.removesuffix(f": {change.key.arm}"), change.against


def limits(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], result: RunComparison) -> Iterator[str]:
    """Yield the assumptions behind the figures, and the differences between the runs besides the code."""
    if (run_to_run := result.run_to_run) is None:
        yield f"Errors come from the scatter of the runs ({len(before)} of A, {len(after)} of B)."
    else:
        source = "from the place in memory and the order of building"
        if run_to_run.centre > math.sqrt(2) * BETWEEN_RUNS:
            source += ", and from the change of the ceilings' ratios to one another"
        factor = math.exp(run_to_run.centre)
        yield (
            f"One run a side: runs are assumed to differ by a factor of {factor:.3f} ({source}); three runs a side, "
            "with commas between, measure it."
        )
    flagged = [change for change in result.twins if change.ratio.verdict in ("FASTER", "SLOWER")]
    if result.twins:
        doubt = ": so may an arm above be that has not changed" if flagged else ""
        yield f"{plural(len(result.twins), 'pair')} of identical arms, {len(flagged)} called changed{doubt}."
    ceilings = {name for run in before for each in run.arms.values() for name in ceiling_seconds(each.comparison)}
    if controls := sorted({change.against for change in result.changes} - ceilings):
        yield (
            f"Arms are compared with {', '.join(controls)}, the control: a change of all arms and the control alike is "
            "not seen."
        )
    for side, runs in (("A", before), ("B", after)):
        yield from doubts(side, runs)
    yield from other_load(before, after)
    differs = differences(before, after)
    for name, (a, b) in differs.items():
        yield f"{name} differs: {a} in A, {b} in B"
    if set(differs) - {"subject", "quick"}:
        yield (
            "A machine that is faster at all work does not change these ratios. A machine that is faster at some work "
            "does, so that a change above may come from the machine or from a library."
        )


def doubts(side: str, runs: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Yield a line for each run that ended early, or whose identical arms differ too often."""
    for run in runs:
        if run.interrupted:
            yield f"{run.path.stem} ({side}) ended early: the arms that it has are compared."
        alarms = run.footer.get("false_alarms")
        if isinstance(alarms, dict) and alarms.get("pairs") and alarms.get("evidence") is False:
            counts = f"{alarms.get('flagged')} of {alarms['pairs']} pairs"
            yield f"{run.path.stem} ({side}) is no evidence: it called {counts} of identical arms different."


def other_load(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Yield a line for each side on which more processes wanted a core than the run has threads."""
    for side, runs in (("A", before), ("B", after)):
        rows = [result.comparison for run in runs for result in run.arms.values()]
        most = max(((row.get("load") or 0) - (row.get("threads") or 0) for row in rows), default=0)
        if most > OTHER_LOAD:
            yield f"Other processes were running in {side} (a load of {most:.1f} besides its own): run it again alone."


def differences(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> dict[str, tuple[str, str]]:
    """Return the settings and properties of the machine that differ, with their values on both sides."""
    found = {}
    for name in (*SETTINGS, *MACHINE):
        a, b = ({value for run in side for value in _values(run, name)} for side in (before, after))
        if a != b:
            found[name] = (_join(a), _join(b))
    return found


def _values(run: BenchmarkRun, name: str) -> set[Any]:
    if name in SETTINGS:
        return {result.comparison.get(name) for result in run.arms.values()}
    return {(run.header.get("environment") or {}).get(name)}


def _join(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values))) or "unknown"


def apply_gate(gate: Gate, changes: Sequence[Change]) -> tuple[str, bool]:
    """Return a gate's result in a line, and True if it failed. Raises HarnessError if it applies to no arm."""
    applicable = gate.applicable(changes)
    if not applicable:
        raise HarnessError(f"--fail-if {gate}: no arm above has that figure on both sides, so it would always pass")
    exceeded = gate.exceeded(changes)
    arms = "; ".join(f"{change.key.label} {_growth(gate, change)}" for change in exceeded)
    judged = plural(len(applicable), "arm")
    line = f"--fail-if {gate}: {f'FAILED by {arms}' if exceeded else 'passed'} ({judged} judged"
    if gate.quantity == "slower":
        undecided = [change for change in applicable if change not in exceeded and change.ratio.high > gate.factor]
        if undecided:
            line += f", {len(undecided)} of them undecided: their intervals reach beyond the limit"
        line += (
            f"; of comparisons in which no arm became slower by more than that, at most {ALPHA:.0%} fail, if the "
            "errors are those stated above: one-sided tests, Holm"
        )
    return f"{line})", bool(exceeded)


def _growth(gate: Gate, change: Change) -> str:
    field = FIELDS[gate.quantity]
    if field is None:
        return change.describe()
    a, b = change.exact[field]
    return f"{b / a:.3g}x" if a else f"from 0 to {b:.3g}"


def write_csv(path: Path, changes: Sequence[Change]) -> None:
    """Write the table with every figure in full precision."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for change in changes:
            ratio = change.ratio
            figures = (change.before, change.after, ratio.ratio, ratio.low, ratio.high, ratio.p, ratio.verdict)
            rows.writerow((*change.key, change.against, *figures))
