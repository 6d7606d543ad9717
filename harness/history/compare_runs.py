"""Comparison of benchmark runs of other days or machines: each arm by its ratio to a ceiling or control of its run."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.bench.statistics import CONFIDENCE, Estimate, Ratio, describe_ratio, holm, median
from harness.core.errors import HarnessError, did_you_mean
from harness.core.record_files import Row
from harness.history.benchmark_runs import EXACT_FIELDS, SAME_WORK, ArmKey, ArmResult, BenchmarkRun, common_ceilings
from harness.history.change_estimates import (
    change_of_several_runs,
    change_of_two_runs,
    mean,
    ratio_of_change,
    run_to_run_estimate,
)

HOPELESS = 3  # an interval of this factor either way says nothing, and its bounds would only be long numbers
ALPHA = 1 - CONFIDENCE

Against = Literal["yardstick", "control"]


@dataclass(frozen=True)
class Change:
    """The change of one arm from A to B: `before` and `after` are its time in units of `against`'s."""

    key: ArmKey
    against: str
    before: float
    after: float
    estimate: Estimate
    ratio: Ratio
    exact: Mapping[str, tuple[float, float]]  # EXACT_FIELDS in A and in B: bytes at the peak, error against float64

    def describe(self) -> str:
        """Return the change as every ratio is printed: `1.31x slower [1.28, 1.34]`."""
        if self.ratio.half_width > math.log(HOPELESS):
            return f"inconclusive: the interval is wider than a factor of {HOPELESS} either way"
        return describe_ratio(self.ratio)


@dataclass(frozen=True)
class RunComparison:
    """The table of changes: arms that both sides have, twins (arms identical to another), and arms left out.

    `left_out` gives the reason for each arm that could not be compared. Of those, `lost` are the arms that had a time
    in A and were refused one in B: they are wrong now, or crashed. `absent` are the arms that a run of A or of B does
    not have, by that side.

    `run_to_run` is by how much two single runs differ besides the noise of their rounds; None if a side has several
    runs, whose scatter shows it.
    """

    run_to_run: Estimate | None
    changes: list[Change]
    twins: list[Change]
    left_out: dict[ArmKey, str]
    lost: list[ArmKey]
    absent: Mapping[str, list[ArmKey]]


def compare(
    before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], *, words: str = "", against: Against | None = None
) -> RunComparison:
    """Compare every arm that all runs of both sides have and whose label contains all `words`.

    Arms are compared by their ratio to the first ceiling that all runs have, which measures the machine's speed and
    does not depend on the subject. Without a common ceiling, they are compared by their ratio to the control.
    `against` chooses one of the two. Raises HarnessError if no arm is left, or if a run is given twice.
    """
    _check_distinct([*before, *after])
    runs = [*before, *after]
    common = [key for key in runs[0].arms if all(key in run.arms for run in runs)]
    chosen = [key for key in common if selects(words, key.label)]
    if not chosen:
        raise HarnessError(_nothing_in_common(before, after, common, words))
    absent = {
        side: [key for key in _of_any(runs) if selects(words, key.label) and not all(key in run.arms for run in each)]
        for side, each in (("A", before), ("B", after))
    }
    result = RunComparison(run_to_run_estimate(before, after), [], [], {}, [], absent)
    for key in chosen:
        a, b = ([run.arms[key] for run in side] for side in (before, after))
        twin_of = a[0].arm["twin_of"]
        other = twin_of or _reference(a + b, against)
        if not any(each.arm["seconds"] for each in a + b):
            if refused := next((each for each in b if _refused(each.arm)), None):
                result.left_out[key] = f"no time in A and B: {_refusal(refused.arm)}"
            continue  # no run has a time for it, and each run says why: an arm for another device, for example
        if reason := _why_not_comparable(a, b, other):
            result.left_out[key] = reason
            if all(each.arm["seconds"] for each in a) and any(_refused(each.arm) for each in b):
                result.lost.append(key)
        elif other is not None and other != key.arm:
            (result.twins if twin_of else result.changes).append(_change(key, a, b, other, result.run_to_run))
    return dataclasses.replace(result, changes=_adjusted(result.changes), twins=_adjusted(result.twins))


def _refused(arm: Row) -> bool:
    return not arm["seconds"] and arm["verified"]["verdict"] in ("fail", "error")


def _refusal(arm: Row) -> str:
    return f"{arm['verified']['verdict']}: {arm['verified']['message']}"


def _of_any(runs: Sequence[BenchmarkRun]) -> list[ArmKey]:
    return list(dict.fromkeys(key for run in runs for key in run.arms))


def selects(words: str, label: str) -> bool:
    """Return True if the label contains every word, ignoring case."""
    return all(word in label.lower() for word in words.lower().split())


def _check_distinct(runs: Sequence[BenchmarkRun]) -> None:
    for one, other in itertools.combinations(runs, 2):
        if one.path.resolve() == other.path.resolve():
            raise HarnessError(f"{one.path} is on both sides; expected two runs, such as `latest~1 latest`")
        if one.arms and (one.header, one.arms) == (other.header, other.arms):
            raise HarnessError(f"{other.path} is a copy of {one.path}; expected runs that were measured apart")


def _nothing_in_common(
    before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun], common: Sequence[ArmKey], words: str
) -> str:
    if common:
        names = {key.comparison for key in common} | {key.arm for key in common}
        return f"-k '{words}' selects none of the {len(common)} arms in common; {did_you_mean(words, names)}"
    return (
        f"no arm in common: A has {_contents(before)}, B has {_contents(after)}; "
        "expected the same size, comparisons and points"
    )


def _contents(runs: Sequence[BenchmarkRun]) -> str:
    keys = [key for run in runs for key in run.arms]
    found = sorted({f"{key.comparison} at {key.size}" for key in keys})
    return ", ".join(found) or "no comparison"


def _reference(results: Sequence[ArmResult], against: Against | None) -> str | None:
    """Return the name of the first ceiling that all have, or of the control; None without either."""
    common = common_ceilings([each.comparison for each in results])
    if against != "control" and common:
        return common[0]
    controls = {str(each.comparison["control"]) for each in results}
    return controls.pop() if against != "yardstick" and len(controls) == 1 else None


def _why_not_comparable(before: Sequence[ArmResult], after: Sequence[ArmResult], other: str | None) -> str | None:
    """Return why the times are not times of the same work on both sides, or None if they are."""
    for side, results in (("A", before), ("B", after)):
        for each in results:
            if not each.arm["seconds"]:
                return f"no time in {side}: {_refusal(each.arm)}"
            if other is None:
                return "no yardstick in common"
            if other != each.arm["arm"] and each.log_ratio_to(other) is None:
                return f"{other}, which it is compared with, has no time in {side}"
    for field in SAME_WORK:
        values = sorted({each.arm[field] for each in (*before, *after) if each.arm.get(field) is not None})
        if len(values) > 1:
            return f"not the same work: {field} {' and '.join(f'{value:,}' for value in values)}"
    return None


def _change(
    key: ArmKey, before: Sequence[ArmResult], after: Sequence[ArmResult], other: str, run_to_run: Estimate | None
) -> Change:
    sides = [
        [estimate for each in side if (estimate := each.log_ratio_to(other)) is not None] for side in (before, after)
    ]
    if run_to_run is None:
        estimate = change_of_several_runs(*sides)
    else:
        estimate = change_of_two_runs(sides[0][0], sides[1][0], run_to_run)
    exact = {}
    for field in EXACT_FIELDS:
        values = [[each.arm[field] for each in side if each.arm.get(field) is not None] for side in (before, after)]
        if all(values):
            exact[field] = (median(values[0]), median(values[1]))
    rounds = min(len(each.arm["seconds"]) for each in (*before, *after))
    ratios = [math.exp(mean([run.centre for run in side])) for side in sides]
    return Change(key, other, ratios[0], ratios[1], estimate, ratio_of_change(estimate, rounds), exact)


def _adjusted(changes: Sequence[Change]) -> list[Change]:
    """Return the changes with FASTER and SLOWER only where they remain after Holm's adjustment for all rows."""
    adjusted = []
    for change, p in zip(changes, holm([change.ratio.p for change in changes]), strict=True):
        by_chance = p > ALPHA and change.ratio.verdict in ("FASTER", "SLOWER")
        ratio = dataclasses.replace(change.ratio, verdict="UNRESOLVED") if by_chance else change.ratio
        adjusted.append(dataclasses.replace(change, ratio=ratio))
    return adjusted
