"""Measures of claims about time: they read the records of `make bench`."""

from __future__ import annotations

from harness.core.errors import MissingResource
from harness.core.record_files import Row, comparison_label
from harness.measures.claims.run_records import RecordedRun, newest_run
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure


@measure
def times_faster(
    subject: Subject, *, comparison: str, metric: str, arm: str, point: int, bounds: list[float]
) -> Reading:
    """Return how many times as fast as its control an arm was in the newest benchmark run; the spread is its interval.

    `bounds` are the ends of the claimed range: an interval with one of them inside decides nothing. Raises
    MissingResource for such an interval, and if the run does not have it, or is no evidence.
    """
    run = newest_run("bench", subject.name)
    row = _comparison(run, comparison, metric, point)
    found = next((ratio for ratio in row["ratios"] if ratio["arm"] == arm), None)
    label = comparison_label(comparison, metric, row.get("axis"), point)
    if found is None:
        raise MissingResource(f"a time of {arm} in {label}: `make bench` has none (is its answer verified?)")
    low, high = 1 / found["high"], 1 / found["low"]
    if any(low < bound < high for bound in bounds):
        raise MissingResource(
            f"a conclusive time of {arm} in {label}: `make bench` found [{low:.2f}, {high:.2f}] times"
        )
    if run.footer and not (run.footer.get("false_alarms") or {}).get("evidence", True):
        raise MissingResource(
            "a benchmark run that is evidence: the newest calls identical arms different; run it again"
        )
    spread = {"low": low, "high": high, "over": f"{found['rounds']} paired rounds, 95%"}
    return Reading(
        1 / found["ratio"], "times as fast", {"spread": spread, "run": run.origin, "against": found["against"]}
    )


@measure
def ridge_point(subject: Subject, *, gpu: str) -> Reading:
    """Return the FLOP per byte at which the newest benchmark run's machine turns from memory-bound to compute-bound.

    Its fastest measured matrix product over its fastest measured read. Raises MissingResource, with the ridge of the
    machine at hand, if that is not the GPU.
    """
    run = newest_run("bench", subject.name)
    products, reads = _rates(run, "gemm"), _rates(run, "read")
    if not products or not reads:
        raise MissingResource("ceilings: the newest run of `make bench` measured none")
    name, rate = max(products.items(), key=lambda item: item[1])
    ridge = rate / max(reads.values())
    if gpu not in str((run.header.get("environment") or {}).get("gpu")):
        raise MissingResource(
            f"an {gpu}: `make bench` ran on {run.machine}, whose ridge is {ridge:.1f} FLOP per byte ({name})"
        )
    return Reading(ridge, "FLOP per byte", {"run": run.origin, "product": name})


def _comparison(run: RecordedRun, comparison: str, metric: str, point: int) -> Row:
    rows = [row for row in run.of_kind("comparison") if (row["comparison"], row["metric"]) == (comparison, metric)]
    found = next((row for row in rows if row.get("point") == point), None)
    if found is None:
        points = ", ".join(str(row.get("point")) for row in rows) or "none"
        label = comparison_label(comparison, metric, "point", point)
        raise MissingResource(f"{label}: the newest run of `make bench` has the points {points}")
    return found


def _rates(run: RecordedRun, kind: str) -> dict[str, float]:
    """Return the highest measured rate of each ceiling whose name begins with `kind`, in FLOP/s or bytes/s."""
    rates: dict[str, float] = {}
    for row in run.of_kind("comparison"):
        for ceiling in row.get("ceilings") or []:
            if str(ceiling["name"]).startswith(kind) and isinstance(ceiling.get("rate"), int | float):
                rates[ceiling["name"]] = max(rates.get(ceiling["name"], 0.0), float(ceiling["rate"]))
    return rates
