"""Benchmark runs, found by their names on the command line and read from their record files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeGuard

from harness.bench.statistics import FEWEST_ROUNDS, Estimate, trimmed_mean
from harness.core.errors import HarnessError
from harness.core.record_files import Row, age, comparison_label, read

EXACT_FIELDS = ("peak_memory_bytes", "error")  # of an arm's row, and without noise
SAME_WORK = ("tokens_per_call", "flops", "positions_closed_form")  # of an arm's row: equal where the work is
NUMBERS = (*EXACT_FIELDS, *SAME_WORK)


class ArmKey(NamedTuple):
    """The fields that two times must share to be times of the same work."""

    size: str
    comparison: str
    metric: str
    axis: str
    point: int | None
    arm: str

    @property
    def label(self) -> str:
        """`attention forward, tokens=512: flash`."""
        return f"{comparison_label(self.comparison, self.metric, self.axis, self.point)}: {self.arm}"


@dataclass(frozen=True)
class ArmResult:
    """One arm in one run: its row, and the row of its comparison."""

    arm: Row
    comparison: Row

    def log_ratio_to(self, other: str) -> Estimate | None:
        """Return the log-ratio of its time to that of another arm or ceiling, over the rounds of both.

        None if either has no time, or too few rounds in common.
        """
        return paired_log_ratio(self.arm["seconds"], _timed(self.comparison).get(other))


@dataclass(frozen=True)
class BenchmarkRun:
    """One record file of a benchmark run. `footer` is empty if the run died before its end."""

    path: Path
    header: Row
    arms: Mapping[ArmKey, ArmResult]
    footer: Row

    @property
    def interrupted(self) -> bool:
        """True if the run ended before it had finished."""
        return not self.footer.get("complete")


def find_runs(spec: str, records: Path) -> list[Path]:
    """Return the record files that `spec` names, each once.

    `spec` is one or more names with commas between. A name is a file, a folder of files, `latest`, `latest~1`, or the
    beginning of a run's time (`20261122T17`), which may match several runs in the folder `records`. Raises HarnessError
    for a name that matches none.
    """
    found = [path for name in spec.split(",") for path in _find(name.strip(), records)]
    return list(dict.fromkeys(found))


def _find(name: str, records: Path) -> list[Path]:
    path = Path(name)
    if path.is_file():
        return [path]
    known = sorted((path if path.is_dir() else records).glob("bench-*.jsonl"), key=age)
    if path.is_dir():
        if not known:
            raise HarnessError(f"{path} has no bench-*.jsonl; expected the folder of the records that benchmarks write")
        return known
    word, _, back = name.partition("~")
    if word == "latest" and (back or "0").isdecimal() and int(back or 0) < len(known):
        return [known[-1 - int(back or 0)]]
    stamp = name.removeprefix("bench-")
    matching = [path for path in known if stamp and path.stem.removeprefix("bench-").startswith(stamp)]
    if not matching:
        newest = ", ".join(path.stem for path in known[-3:]) or "none; `pytest benchmarks/` writes them"
        raise HarnessError(f"'{name}' is neither a file nor a run in {records}; the newest runs there: {newest}")
    return matching


def read_run(path: Path) -> BenchmarkRun:
    """Read one run, complete or not. Raises HarnessError if the file is not the record of a benchmark run."""
    rows = read(path)
    if rows[0].get("run") != "bench":
        raise HarnessError(f"{path}: records of a run of kind {rows[0].get('run')!r}, expected 'bench'")
    return run_from_rows(path, rows)


def run_from_rows(path: Path, rows: Sequence[Row]) -> BenchmarkRun:
    """Return the run that `rows`, a header first, are the record of.

    Raises HarnessError, with the number of the line, for a row that no run has written.
    """
    arms = {}
    for number, row in enumerate(rows, start=1):
        if trouble := next(troubles(row), None):
            raise HarnessError(f"{path}:{number}: {trouble}; the file was edited or damaged")
        for arm in row["arms"] if row.get("kind") == "comparison" else ():
            point = (str(row.get("size")), row["comparison"], row["metric"], row.get("axis") or "", row["point"])
            arms[ArmKey(*point, arm["arm"])] = ArmResult(arm, row)
    return BenchmarkRun(path, rows[0], arms, next((row for row in rows if row.get("kind") == "footer"), {}))


def troubles(row: Row) -> Iterator[str]:
    """Yield what a row has that comparing runs reads and no run writes."""
    if row.get("kind") == "header" and not isinstance(row.get("environment", {}), dict):
        yield "environment: expected an object"
    if row.get("kind") != "comparison":
        return
    for name in ("comparison", "metric", "control"):
        if not isinstance(row.get(name), str):
            yield f"{name}: expected a text"
    if not isinstance(row.get("axis"), str | None) or not isinstance(row.get("point", ""), int | None):
        yield "axis and point: expected a text and a whole number, or null"
    for name in ("load", "threads"):
        if row.get(name) is not None and not _is_number(row[name]):
            yield f"{name}: expected a number"
    arms, ceilings = row.get("arms"), row.get("ceilings") or []
    if not isinstance(arms, list) or not isinstance(ceilings, list):
        yield "arms and ceilings: expected lists"
        return
    for each, name in (*((arm, "arm") for arm in arms), *((ceiling, "name") for ceiling in ceilings)):
        if not isinstance(each, dict) or not isinstance(each.get(name), str):
            yield f"{name}: expected a text"
        elif not _are_times(each.get("seconds", "")):
            yield f"seconds of {each[name]}: expected finite numbers above 0, or null"
        elif name == "arm":
            yield from _troubles_of_arm(each)


def _troubles_of_arm(arm: Row) -> Iterator[str]:
    verified = arm.get("verified")
    if not isinstance(verified, dict) or not {"verdict", "message"} <= set(verified):
        yield f"verified of {arm['arm']}: expected a verdict and a message"
    if not isinstance(arm.get("twin_of", 0), str | None):
        yield f"twin_of of {arm['arm']}: expected the name of an arm, or null"
    for name in NUMBERS:
        if arm.get(name) is not None and not _is_number(arm[name]):
            yield f"{name} of {arm['arm']}: expected a number, or null"


def _are_times(value: object) -> bool:
    return value is None or (isinstance(value, list) and all(_is_number(each) and each > 0 for each in value))


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def ceiling_seconds(comparison: Row) -> dict[str, list[float]]:
    """Return the seconds of each round of a comparison's ceilings, by name."""
    return {ceiling["name"]: ceiling["seconds"] for ceiling in comparison.get("ceilings") or ()}


def common_ceilings(comparisons: Sequence[Row]) -> list[str]:
    """Return the names of the ceilings that all the comparisons have, in the order of the first."""
    first = ceiling_seconds(comparisons[0])
    return [name for name in first if all(name in ceiling_seconds(row) for row in comparisons)]


def _timed(comparison: Row) -> dict[str, list[float]]:
    return {arm["arm"]: arm["seconds"] for arm in comparison["arms"]} | ceiling_seconds(comparison)


def paired_log_ratio(seconds: Sequence[float] | None, others: Sequence[float] | None) -> Estimate | None:
    """Return the trimmed mean of log(seconds / others) over rounds; None without enough rounds that both have."""
    if not seconds or not others or len(seconds) != len(others) or len(seconds) < FEWEST_ROUNDS:
        return None
    return Estimate(*trimmed_mean([math.log(a / b) for a, b in zip(seconds, others, strict=True)]))
