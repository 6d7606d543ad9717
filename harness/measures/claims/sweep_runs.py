"""Measures of claims about scaling: they read the records of `gpt-harness sweep`."""

from __future__ import annotations

import math
from typing import Any, Literal

from harness.core.errors import MissingResource
from harness.core.record_files import Row
from harness.measures.claims.run_records import RecordedRun, newest_run
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

Exponent = Literal["size_exponent", "data_exponent", "loss_exponent"]
COMMAND = "gpt-harness sweep"


@measure
def swept_exponent(
    subject: Subject, *, source: str, exponent: Exponent, approach: str = "iso-flop", count: str = "all"
) -> Reading:
    """Return an exponent that was fitted to the newest sweep; the spread is its 95% bootstrap interval.

    Of N_opt ~ C^a, D_opt ~ C^b or L_opt ~ C^-γ. `count` says which parameters N counts. Raises MissingResource if the
    sweep lacks the source, if its fit has no interval, or if a minimum is beyond the sizes that were run.
    """
    run, row = _fit(subject, source, approach, count)
    value, low, high = _value(row, exponent)
    if outside := row.get("not_bracketed"):
        raise MissingResource(
            f"a sweep of {source} with sizes on both sides of each minimum: that at {outside[0]:g} FLOPs is beyond "
            "the sizes that were run"
        )
    spread = {"low": low, "high": high, "over": f"{row['runs']} runs, 95%"}
    return Reading(value, "", {"spread": spread, "run": run.origin, "approach": approach, "N counts": count})


@measure
def swept_power_law(subject: Subject, *, source: str) -> Reading:
    """Return what the sweep's L_opt ~ C^-γ says: γ, what doubling C removes of the loss, and the C that halves it.

    The power law has no constant, as the lessons have it; where the loss nears the entropy of the text it ends.
    """
    run, row = _fit(subject, source, "iso-flop", "all")
    value, low, high = _value(row, "loss_exponent")
    places = {
        "exponent": value,
        "lower at twice the compute": 1 - 2**-value,
        "compute for half the loss": 2 ** (1 / value),
    }
    spread = {"low": 1 - 2**-low, "high": 1 - 2**-high, "over": f"{row['runs']} runs, 95%"}
    units = {"lower at twice the compute": "of the loss", "compute for half the loss": "times"}
    return Reading(places, "", {"run": run.origin, "spread": spread, "units": units})


@measure
def entropy_missed(subject: Subject, *, source: str) -> Reading:
    """Return how far the fitted E is from the known entropy, in half widths of its 95% interval.

    The entropy is that of the validation part under the source: the loss of a perfect model on that very text. The fit
    does not know it. Raises MissingResource for a text, whose entropy nobody knows.
    """
    run, row = _fit(subject, source, "parametric", "all")
    floor = row.get("floor")
    if not isinstance(floor, int | float):
        raise MissingResource(f"a source of known entropy: {source} is a text")
    value, low, high = _value(row, "E")
    half = (high - value) if floor > value else (value - low)
    details = {"E": [value, low, high], "known": floor, "source": row.get("entropy"), "run": run.origin}
    hint = f"E = {value:.4f} [{low:.4f}, {high:.4f}] nats, known {floor:.4f}"
    return Reading(abs(value - floor) / half if half > 0 else math.inf, "half widths", {**details, "hint": hint})


def _fit(subject: Subject, source: str, approach: str, count: str) -> tuple[RecordedRun, Row]:
    run = newest_run("sweep", subject.name)
    wanted = (source, approach, count)
    fits = run.of_kind("fit")
    row = next((row for row in fits if (row.get("source"), row.get("approach"), row.get("count")) == wanted), None)
    if row is None or not row.get("values"):
        why = f": it needs {row['missing']}" if row is not None and row.get("missing") else ""
        sources = ", ".join(dict.fromkeys(str(other.get("source")) for other in fits)) or "none"
        raise MissingResource(
            f"a fit of {source} by {approach}: the newest sweep has fits of {sources}{why}; `{COMMAND} --plan full`"
        )
    return run, row


def _value(row: Row, name: str) -> tuple[float, float, float]:
    """Return a fitted value and its interval. Raises MissingResource if the sweep is too small for one."""
    values: Any = row["values"].get(name)
    if not isinstance(values, list) or not all(
        isinstance(each, int | float) and math.isfinite(each) for each in values
    ):
        raise MissingResource(f"an interval of {name}: the sweep has {row.get('runs')} runs, too few for one")
    value, low, high = (float(each) for each in values)
    return value, low, high
