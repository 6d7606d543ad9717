"""`gpt-harness compare`: two benchmark runs side by side, and the exit status that a gate in CI goes by."""

from __future__ import annotations

import argparse
import csv
import itertools
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError
from harness.history.compare_runs import (
    ALPHA,
    BETWEEN_RUNS,
    BenchmarkRun,
    Change,
    Compared,
    Gate,
    Key,
    compare,
    find_runs,
    read_run,
)

A_RUN = (
    "a record file, a folder of them, `latest`, `latest~1`, or the beginning of a run's time (20261122T17); several "
    "with commas between"
)
# What a comparison's row says of how it was made; the rest is the machine's, in the header.
CHOSEN, MACHINE = ("subject", "device", "threads", "quick"), ("cpu", "torch", "gpu", "huge_pages", "preloaded")
OTHER_LOAD = 0.5  # processes that wanted a core besides this one's threads
COLUMNS = (*Key._fields, "against", "A", "B", "change", "low", "high", "p", "verdict")


def add_compare(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`gpt-harness compare A B [-k WORDS] [--against WHAT] [--fail-if slower:5%]`."""
    command = commands.add_parser(
        "compare",
        help="what became of every arm between two benchmark runs",
        description="Compare benchmark runs, of other days or machines too, by the ratio of each arm to what the same "
        "run measured beside it. Exit status 1 if a --fail-if is met, or an arm that is now wrong has lost its time.",
    )
    command.add_argument("before", metavar="A", help=A_RUN)
    command.add_argument("after", metavar="B", help="the same, for the runs that are compared with A")
    command.add_argument("-k", dest="words", default="", metavar="WORDS", help="only arms whose line has all WORDS")
    command.add_argument(
        "--against", choices=("yardstick", "control"),
        help="hold arms against the run's first ceiling, or its control (default: the first where both runs have it)",
    )  # fmt: skip
    command.add_argument(
        "--fail-if", dest="gates", type=_gate, action="append", default=[], metavar="WHAT",
        help="slower:5%%, memory:5%% or error:2x: exit status 1 if an arm grew by more; may be given several times",
    )  # fmt: skip
    command.add_argument(
        "--records", type=Path, default=Path("reports/records"), metavar="DIR", help="where runs are (%(default)s)"
    )
    command.add_argument("--output", type=Path, metavar="FILE.csv", help="write the table there as well")
    command.set_defaults(run=run_compare)


def _gate(text: str) -> Gate:
    try:
        return Gate.read(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run_compare(options: argparse.Namespace) -> int:
    """Print the table, what limits it, and what each gate makes of it."""
    sides = [[read_run(path) for path in find_runs(name, options.records)] for name in (options.before, options.after)]
    before, after = sides
    found = compare(before, after, words=options.words, against=options.against)
    print("\n".join([*heading(before, after), "", *table(found), "", *limits(before, after, found)]))
    if options.output:
        write_csv(options.output, found.changes)
    failed = bool(options.gates and found.lost)
    if failed:
        lost = "; ".join(f"{key.label} ({found.left_out[key]})" for key in found.lost)
        print(f"--fail-if: FAILED by what had a time in A and is refused one in B: {lost}")
    for gate in options.gates:
        told, breached = judged(gate, found.changes)
        failed |= breached
        print(told)
    return int(failed)


def heading(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Which runs these are."""
    for side, runs in (("A", before), ("B", after)):
        for run in runs:
            environment = run.header.get("environment") or {}
            commit = environment.get("git_commit") or "no commit"
            changed = ", changed" if environment.get("git_dirty") else ""
            yield f"{side}  {run.path.stem}  {_said(_values(run, 'subject'))} at {commit}{changed}"


def table(found: Compared) -> Iterator[str]:
    """An arm a line, under its comparison: its time in yardsticks in A and in B, and what the change comes to."""
    width = max((len(change.key.arm) for change in found.changes), default=0)
    for (title, against), changes in itertools.groupby(found.changes, key=_title):
        yield f"{title}, in times of {against}"
        for change in changes:
            memory = change.exact.get("peak_memory_bytes", (0.0, 0.0))
            more = f"  peak memory {memory[1] / memory[0]:.3g}x" if memory[0] and memory[0] != memory[1] else ""
            yield f"  {change.key.arm:<{width}}  A {change.before:<9.4g} B {change.after:<9.4g} {change.told}{more}"
    for key, why in found.left_out.items():
        yield f"not compared: {key.label}: {why}"


def _title(change: Change) -> tuple[str, str]:
    return change.key.label.removesuffix(f": {change.key.arm}"), change.against


def limits(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], found: Compared) -> Iterator[str]:
    """What the figures above rest on, and what differs between the runs besides the code."""
    if (between := found.between) is None:
        yield f"Errors are the scatter of the runs ({len(before)} of A, {len(after)} of B)."
    else:
        source = "what place in memory and order of building come to"
        if between.centre > math.sqrt(2) * BETWEEN_RUNS:
            source += ", and what the ceilings' ratios to one another changed by"
        factor = math.exp(between.centre)
        yield (
            f"One run a side: a factor of {factor:.3f} is taken for what differs from run to run ({source}); three "
            "runs a side, with commas between, measure it."
        )
    flagged = [change for change in found.twins if change.ratio.verdict in ("FASTER", "SLOWER")]
    if found.twins:
        yield f"{len(found.twins)} pairs of identical arms, {len(flagged)} called changed."
    yield from busy(before, after)
    differs = differences(before, after)
    for what, (a, b) in differs.items():
        yield f"{what} differs: {a} in A, {b} in B"
    if set(differs) - {"subject", "quick"}:
        yield (
            "A machine that is faster as a whole leaves these ratios alone; one that is faster at some work only does "
            "not, so a change above may be the machine's or the library's."
        )


def busy(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Iterator[str]:
    """Whether other work was going on: more processes wanted a core than the run has threads."""
    for side, runs in (("A", before), ("B", after)):
        rows = [one.comparison for run in runs for one in run.observed.values()]
        most = max(((row.get("load") or 0) - (row.get("threads") or 0) for row in rows), default=0)
        if most > OTHER_LOAD:
            yield f"Other work was going on in {side} (a load of {most:.1f} besides its own): run it again on its own."


def differences(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> dict[str, tuple[str, str]]:
    """What the runs were made with that is not the same on both sides."""
    found = {}
    for what in (*CHOSEN, *MACHINE):
        a, b = ({value for run in side for value in _values(run, what)} for side in (before, after))
        if a != b:
            found[what] = (_said(a), _said(b))
    return found


def _values(run: BenchmarkRun, what: str) -> set[Any]:
    if what in CHOSEN:
        return {one.comparison.get(what) for one in run.observed.values()}
    return {(run.header.get("environment") or {}).get(what)}


def _said(values: set[Any]) -> str:
    return ", ".join(sorted(map(str, values))) or "unknown"


def judged(gate: Gate, changes: Sequence[Change]) -> tuple[str, bool]:
    """What a gate says in a line, and whether it is met. Raises HarnessError where it had nothing to judge."""
    tested = gate.tested(changes)
    if not tested:
        raise HarnessError(f"--fail-if {gate}: no arm above has that figure on both sides, so it would always pass")
    breached = gate.breached(changes)
    named = "; ".join(f"{change.key.label} {_growth(gate, change)}" for change in breached)
    told = f"--fail-if {gate}: {f'FAILED by {named}' if breached else 'passed'} ({len(tested)} arms judged"
    if gate.what == "slower":
        told += (
            f"; of comparisons in which none became slower by more than that, at most {ALPHA:.0%} fail, as far as the "
            "errors are those told above: one-sided tests, Holm"
        )
    return f"{told})", bool(breached)


def _growth(gate: Gate, change: Change) -> str:
    if gate.what == "slower":
        return change.told
    a, b = change.exact["peak_memory_bytes" if gate.what == "memory" else gate.what]
    return f"{b / a:.3g}x" if a else f"from 0 to {b:.3g}"


def write_csv(path: Path, changes: Sequence[Change]) -> None:
    """The table with every figure in full."""
    with path.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for change in changes:
            ratio = change.ratio
            figures = (change.before, change.after, ratio.ratio, ratio.low, ratio.high, ratio.p, ratio.verdict)
            rows.writerow((*change.key, change.against, *figures))
