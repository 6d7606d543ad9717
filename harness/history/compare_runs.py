"""Runs of other days and machines compared: each arm by its ratio to what the same run measured beside it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from harness.bench.statistics import (
    CONFIDENCE,
    FEWEST_ROUNDS,
    POWER,
    Estimate,
    Ratio,
    describe_ratio,
    holm,
    judge,
    median,
    student_quantile,
    trimmed_mean,
    two_sided,
)
from harness.core.errors import HarnessError, did_you_mean
from harness.core.record_files import place, read

# What one run's place in memory and order of building add to a ratio, whatever its rounds say: 0.8%, measured on an
# A/A stream. It is the least that is taken; only the scatter of several runs can replace it.
BETWEEN_RUNS = 0.008
HOPELESS = 3  # an interval of this factor either way says nothing, and its bounds are only long
MANY = 10_000  # degrees of freedom from which Student's t is the normal; its closed form would only sum longer
ALPHA = 1 - CONFIDENCE

# What a gate is about, and the field of an arm's row that holds it; times have their own test.
GATES: dict[str, str | None] = {"slower": None, "memory": "peak_memory_bytes", "error": "error"}

Row = dict[str, Any]
Against = Literal["yardstick", "control"]


class Key(NamedTuple):
    """What has to be the same for two times to be of the same work."""

    size: str
    comparison: str
    metric: str
    axis: str
    point: int | None
    arm: str

    @property
    def label(self) -> str:
        """`attention forward, tokens=512: flash`."""
        return f"{place(self.comparison, self.metric, self.axis, self.point)}: {self.arm}"


@dataclass(frozen=True)
class Observed:
    """An arm in one run: its row and its comparison's row."""

    arm: Row
    comparison: Row

    def to(self, other: str) -> Estimate | None:
        """Its log-ratio to another arm, or to a ceiling, over the rounds that both were timed in."""
        return _log_ratio(self.arm["seconds"], _timed(self.comparison).get(other))


@dataclass(frozen=True)
class BenchmarkRun:
    """One record file of a benchmark run."""

    path: Path
    header: Row
    observed: Mapping[Key, Observed]


@dataclass(frozen=True)
class Change:
    """What became of an arm from A to B: `before` and `after` are its time in units of `against`'s."""

    key: Key
    against: str
    before: float
    after: float
    estimate: Estimate
    ratio: Ratio
    exact: Mapping[str, tuple[float, float]]  # without noise: bytes at the peak, error against the truth

    @property
    def told(self) -> str:
        """In the words of every ratio; a change that many rows would show by chance is not resolved."""
        if self.ratio.half_width > math.log(HOPELESS):
            return f"not resolved: anything within a factor of {HOPELESS} is possible"
        return describe_ratio(self.ratio)


@dataclass(frozen=True)
class Compared:
    """The table: every arm that both sides have, those identical to another, and what cannot be compared, and why.

    Of the last, `lost` are the arms that had a time in A and are refused one in B: wrong now, or crashed.

    `between` is what two single runs differ by besides the noise of their rounds; None where several runs a side show
    it by their scatter.
    """

    between: Estimate | None
    changes: list[Change]
    twins: list[Change]
    left_out: dict[Key, str]
    lost: list[Key]


def find_runs(spec: str, records: Path) -> list[Path]:
    """The record files that `spec` names, several with commas between: a file, a folder, `latest`, `latest~1`, or
    the beginning of a run's time (`20261122T17`), which may name several runs. Raises HarnessError for none.
    """
    found = [path for word in spec.split(",") for path in _find(word.strip(), records)]
    return list(dict.fromkeys(found))


def _find(word: str, records: Path) -> list[Path]:
    path = Path(word)
    if path.is_file():
        return [path]
    folder = path if path.is_dir() else records
    known = sorted(folder.glob("bench-*.jsonl"), key=age)
    if path.is_dir() and known:
        return known
    name, _, back = word.partition("~")
    if name == "latest" and (back or "0").isdigit() and int(back or 0) < len(known):
        return [known[-1 - int(back or 0)]]
    stamp = word.removeprefix("bench-")
    begun = [path for path in known if stamp and path.stem.removeprefix("bench-").startswith(stamp)]
    if not begun:
        there = ", ".join(path.stem for path in known[-3:]) or "none; `pytest benchmarks/` writes them"
        raise HarnessError(f"'{word}' is no file and no run in {folder}, whose newest are: {there}")
    return begun


def age(path: Path) -> tuple[str, int]:
    """What orders record files by time: the stamp in the name, then the number behind it."""
    _, stamp, again = [*path.stem.split("-"), "0"][:3]
    return stamp, int(again) if again.isdigit() else 0


def read_run(path: Path) -> BenchmarkRun:
    """One run, complete or not. Raises HarnessError for a file that is no record of a benchmark run."""
    rows = read(path)
    if rows[0].get("run") != "bench":
        raise HarnessError(f"{path}: records of a run of kind {rows[0].get('run')!r}, expected 'bench'")
    return run_of(path, rows)


def run_of(path: Path, rows: Sequence[Row]) -> BenchmarkRun:
    """The run that rows are the record of."""
    observed = {}
    for row in rows:
        for arm in row["arms"] if row.get("kind") == "comparison" else ():
            head = (str(row.get("size")), row["comparison"], row["metric"], row.get("axis") or "", row["point"])
            observed[Key(*head, arm["arm"])] = Observed(arm, row)
    return BenchmarkRun(path, rows[0], observed)


def _ceilings(row: Row) -> dict[str, list[float]]:
    return {ceiling["name"]: ceiling["seconds"] for ceiling in row.get("ceilings") or ()}


def _timed(row: Row) -> dict[str, list[float]]:
    return {arm["arm"]: arm["seconds"] for arm in row["arms"]} | _ceilings(row)


def _log_ratio(seconds: Sequence[float] | None, others: Sequence[float] | None) -> Estimate | None:
    if not seconds or not others or len(seconds) != len(others) or len(seconds) < FEWEST_ROUNDS:
        return None
    return Estimate(*trimmed_mean([math.log(a / b) for a, b in zip(seconds, others, strict=True)]))


def compare(
    before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], *, words: str = "", against: Against | None = None
) -> Compared:
    """Every arm that all runs of both sides have; `words` must all be in its label. Raises HarnessError for none.

    Held against the first ceiling where all have it (a machine's speed, whatever the subject does), or else against
    the comparison's control.
    """
    _distinct(before, after)
    runs = [*before, *after]
    common = [key for key in runs[0].observed if all(key in run.observed for run in runs)]
    chosen = [key for key in common if selects(words, key.label)]
    if not chosen:
        raise HarnessError(_nothing_in_common(before, after, common, words))
    found = Compared(_between(before, after), [], [], {}, [])
    for key in chosen:
        a, b = ([run.observed[key] for run in side] for side in (before, after))
        twin_of = a[0].arm["twin_of"]
        other = twin_of or _yardstick([*a, *b], against)
        if not any(one.arm["seconds"] for one in (*a, *b)):
            continue  # told by the runs themselves: an arm that exists on another device, say
        if why := _incomparable(a, b, other):
            found.left_out[key] = why
            if all(one.arm["seconds"] for one in a) and any(_refused(one.arm) for one in b):
                found.lost.append(key)
        elif other is not None and other != key.arm:
            (found.twins if twin_of else found.changes).append(_change(key, a, b, other, found.between))
    return dataclasses.replace(found, changes=_adjusted(found.changes), twins=_adjusted(found.twins))


def _refused(arm: Row) -> bool:
    return not arm["seconds"] and arm["verified"]["verdict"] in ("fail", "error")


def selects(words: str, label: str) -> bool:
    """Whether every word is in the label, in any case of letters."""
    return all(word in label.lower() for word in words.lower().split())


def _distinct(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> None:
    twice = {run.path.resolve() for run in before} & {run.path.resolve() for run in after}
    if twice:
        raise HarnessError(f"{min(twice)} is on both sides; expected two runs, as `latest~1 latest`")


def _nothing_in_common(
    before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], common: Sequence[Key], words: str
) -> str:
    if common:
        names = {key.comparison for key in common} | {key.arm for key in common}
        return f"-k '{words}' selects none of the {len(common)} arms in common; {did_you_mean(words, names)}"
    return (
        f"no arm in common: A has {_contents(before)}, B has {_contents(after)}; "
        "expected the same size, comparisons and points"
    )


def _contents(runs: Sequence[BenchmarkRun]) -> str:
    keys = [key for run in runs for key in run.observed]
    found = sorted({f"{key.comparison} at {key.size}" for key in keys})
    return ", ".join(found) or "no comparison"


def _yardstick(observed: Sequence[Observed], against: Against | None) -> str | None:
    """The first ceiling that all have, or the control."""
    common = _common_ceilings([one.comparison for one in observed])
    if against != "control" and common:
        return common[0]
    controls = {str(one.comparison["control"]) for one in observed}
    return controls.pop() if against != "yardstick" and len(controls) == 1 else None


def _common_ceilings(comparisons: Sequence[Row]) -> list[str]:
    return [name for name in _ceilings(comparisons[0]) if all(name in _ceilings(row) for row in comparisons)]


def _incomparable(before: Sequence[Observed], after: Sequence[Observed], other: str | None) -> str | None:
    """Why these are no two times of the same work, or None."""
    for side, observed in (("A", before), ("B", after)):
        for one in observed:
            if not one.arm["seconds"]:
                return f"no time in {side}: {one.arm['verified']['verdict']}: {one.arm['verified']['message']}"
            if other is None:
                return "no yardstick in common"
            if other != one.arm["arm"] and one.to(other) is None:
                return f"{other}, which it is held against, has no time in {side}"
    for field in ("tokens_per_call", "flops", "positions_closed_form"):
        done = sorted({one.arm[field] for one in (*before, *after) if one.arm.get(field) is not None})
        if len(done) > 1:
            return f"not the same work: {field} {' and '.join(f'{value:,}' for value in done)}"
    return None


def _between(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Estimate | None:
    """What two single runs differ by besides the noise of their rounds; None where a side has several runs.

    The ceilings do the same work in every run, whatever the subject: what their ratios to one another changed by is
    the machine's doing (other work on it, most of all), and what a change of an arm has to stand out from. `centre` is
    the size of it, with BETWEEN_RUNS in both runs besides; `freedom` rests on the comparisons that it was seen in.
    """
    if len(before) + len(after) > 2:
        return None
    pairs = {key._replace(arm=""): (one.comparison, after[0].observed[key].comparison)
             for key, one in before[0].observed.items() if key in after[0].observed}  # fmt: skip
    found = [changes for pair in pairs.values() if (changes := _machine_changes(*pair))]
    squares = [change**2 for changes in found for change in changes]
    least = 2 * BETWEEN_RUNS**2
    if not any(squares):
        return Estimate(math.sqrt(least), 0.0, MANY)
    seen = math.fsum(squares) / len(squares)
    freedom = len(found) * ((least + seen) / seen) ** 2
    return Estimate(math.sqrt(least + seen), 0.0, min(int(freedom), MANY))


def _machine_changes(before: Row, after: Row) -> list[float]:
    """How the logarithms of the ceilings' ratios to the first of them changed from one run to another."""
    first, *others = _common_ceilings([before, after]) or [""]
    a, b = (
        {name: _log_ratio(_ceilings(row)[name], _ceilings(row)[first]) for name in others} for row in (before, after)
    )
    return [y.centre - x.centre for x, y in zip(a.values(), b.values(), strict=True) if x and y]


def _change(
    key: Key, before: Sequence[Observed], after: Sequence[Observed], other: str, between: Estimate | None
) -> Change:
    sides = [[estimate for one in side if (estimate := one.to(other)) is not None] for side in (before, after)]
    estimate = _of_runs(*sides) if between is None else _of_two(sides[0][0], sides[1][0], between)
    exact = {}
    for field in filter(None, GATES.values()):
        found = [[one.arm[field] for one in side if one.arm.get(field) is not None] for side in (before, after)]
        if all(found):
            exact[field] = (median(found[0]), median(found[1]))
    rounds = min(len(one.arm["seconds"]) for one in (*before, *after))
    ratios = [math.exp(_mean([run.centre for run in side])) for side in sides]
    return Change(key, other, ratios[0], ratios[1], estimate, _ratio(estimate, rounds), exact)


def _of_runs(before: Sequence[Estimate], after: Sequence[Estimate]) -> Estimate:
    """The difference of the sides' means, by the runs' own scatter: Student's two samples of one variance.

    A side may be a single run: it is taken to scatter as the others do.
    """
    sides = [[run.centre for run in side] for side in (before, after)]
    freedom = len(before) + len(after) - 2
    squares = math.fsum((centre - _mean(side)) ** 2 for side in sides for centre in side)
    error = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
    return Estimate(_mean(sides[1]) - _mean(sides[0]), error, freedom)


def _of_two(before: Estimate, after: Estimate, between: Estimate) -> Estimate:
    """The difference of two runs: independent errors in squares, Welch's and Satterthwaite's degrees of freedom."""
    errors = [(before.error, before.freedom), (after.error, after.freedom), (between.centre, between.freedom)]
    variance = math.fsum(error**2 for error, _ in errors)
    freedom = variance**2 / math.fsum(error**4 / freedom for error, freedom in errors)
    return Estimate(after.centre - before.centre, math.sqrt(variance), max(1, min(int(freedom), MANY)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _ratio(estimate: Estimate, rounds: int) -> Ratio:
    centre, error, freedom = estimate
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom)
    low, high = math.exp(centre - reach * error), math.exp(centre + reach * error)
    return Ratio(
        ratio=math.exp(centre),
        low=low,
        high=high,
        rounds=rounds,
        verdict=judge(low, high),
        smallest_resolvable=math.expm1((reach + student_quantile(POWER, freedom)) * error),
        p=two_sided(centre, error, freedom),
    )


def _adjusted(changes: Sequence[Change]) -> list[Change]:
    """FASTER and SLOWER only where Holm's adjustment for this many rows leaves them."""
    kept = []
    for change, p in zip(changes, holm([change.ratio.p for change in changes]), strict=True):
        by_chance = p > ALPHA and change.ratio.verdict in ("FASTER", "SLOWER")
        ratio = dataclasses.replace(change.ratio, verdict="UNRESOLVED") if by_chance else change.ratio
        kept.append(dataclasses.replace(change, ratio=ratio))
    return kept


@dataclass(frozen=True)
class Gate:
    """What must not have grown, and by which factor it may have: `slower:5%`, `memory:1.1x`, `error:2x`."""

    what: str
    factor: float

    @classmethod
    def read(cls, text: str) -> Gate:
        """From the command line. Raises ValueError."""
        what, _, amount = text.partition(":")
        if what not in GATES or amount[-1:] not in ("%", "x"):
            raise ValueError(f"'{text}': expected slower:5%, memory:5% or error:2x")
        number = float(amount[:-1])
        factor = 1 + number / 100 if amount.endswith("%") else number
        if not 1 <= factor < math.inf:
            raise ValueError(f"'{text}': what may grow by nothing is 0% or 1x")
        return cls(what, factor)

    def __str__(self) -> str:
        return f"{self.what}:{100 * (self.factor - 1):.4g}%"

    def tested(self, changes: Iterable[Change]) -> list[Change]:
        """The changes that have what this gate is about."""
        field = GATES[self.what]
        return [change for change in changes if field is None or field in change.exact]

    def breached(self, changes: Iterable[Change]) -> list[Change]:
        """Those that grew by more. Times by Holm's one-sided tests together at 5%; the others are exact."""
        tested = self.tested(changes)
        if (field := GATES[self.what]) is not None:
            return [change for change in tested if change.exact[field][1] > self.factor * change.exact[field][0]]
        adjusted = holm([_beyond(change.estimate, self.factor) for change in tested])
        return [change for change, p in zip(tested, adjusted, strict=True) if p <= ALPHA]


def _beyond(estimate: Estimate, factor: float) -> float:
    """The probability of an estimate this high, or higher, where the true ratio is `factor`."""
    distance = estimate.centre - math.log(factor)
    p = two_sided(distance, estimate.error, estimate.freedom) / 2
    return p if distance > 0 else 1 - p
