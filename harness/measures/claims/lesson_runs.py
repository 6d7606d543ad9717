"""Measures of claims about training runs: they read the records of `make lessons`."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from harness.core.errors import MissingResource
from harness.core.record_files import Row
from harness.measures.claims.run_records import RecordedRun, newest_run
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, Scalar, measure

GPT2_VOCABULARY, SMALLEST_124M = 50257, 100_000_000
NEAR = 0.25  # nats: a sample further than this from a loss does not show it
NEIGHBOURS = 9  # recorded steps whose mean is the loss at a step: one step's scatters by about 0.1
SETTLING = 0.1  # of the steps: norms before are those of the start
# The commonest words of English, by which a text of real words differs from one of letters.
COMMON_WORDS = frozenset(
    re.findall(
        "[a-z]+",
        """the and to of i a my in you is that not me it with be your his this for but he have as thou so him will what
        thy all no do by we shall are if her on our thee or from at they she now was them who there when more an would
        how then here had were their one up out go come let us good""",
    )
)


@measure
def exploded_runs(subject: Subject, *, lesson: str, arm: str) -> Reading:
    """Return the share of an arm's runs whose loss exploded; the details have the steps at which.

    The runs are those at GPT-2's size if there are any.
    """
    run, rows = _largest_runs(subject, lesson, arm, full_size_arm=arm)
    steps = [row.get("exploded_at") for row in rows]
    return _reading(run, rows, sum(step is not None for step in steps) / len(steps), "of the runs", exploded=steps)


@measure
def explosion_step(subject: Subject, *, arm: str, steps: int = 0) -> Reading:
    """Return the mean step at which the runs of an arm at GPT-2's size exploded, or "none of N runs" if none did.

    Raises MissingResource if none did and one has less than `steps` steps: it could explode yet.
    """
    run, rows = _full_size_runs(subject, arm)
    exploded = [row["exploded_at"] for row in rows if row.get("exploded_at") is not None]
    done = min(int(row.get("steps") or 0) for row in rows)
    if not exploded and done < steps:
        raise MissingResource(f"a run of {steps:,} steps: `make lessons` did {done:,} of {arm}, without an explosion")
    if not exploded:
        return _reading(run, rows, f"none of {len(rows)} runs in {done:,} steps", "")
    return _reading(run, rows, fmean(exploded), "steps", spread=_spread(exploded, rows))


@measure
def last_loss(subject: Subject, *, arm: str, steps: int = 0) -> Reading:
    """Return the loss at the end of an arm's runs at GPT-2's size, in nats, after at least `steps` steps."""
    run, rows = _full_size_runs(subject, arm)
    done = min(int(row.get("steps") or 0) for row in rows)
    if done < steps:
        found = _mean(rows, "last_loss")
        raise MissingResource(f"a run of {steps:,} steps: `make lessons` did {done:,} of {arm} (loss {found:.2f})")
    return _reading(run, rows, _mean(rows, "last_loss"), "nats", spread=_spread(_values(rows, "last_loss"), rows))


@measure
def loss_above(subject: Subject, *, lesson: str, arm: str, than: str, of: str = "last_loss") -> Reading:
    """Return how much higher an arm's loss is than another arm's, in nats, a mean over seeds; infinite if it exploded.

    Each run is compared with the one of its seed, which has the same weights and batches. `of`: "last_loss" of
    training, or "best_validation".
    """
    run, rows = _runs(subject, lesson, arm)
    others = {row.get("seed"): row for row in _runs(subject, lesson, than)[1]}
    paired = [row for row in rows if row.get("seed") in others]
    if not paired:
        raise MissingResource(f"a seed that {lesson}-{arm} and {lesson}-{than} were both run with")
    differences = [
        (math.inf if row.get("exploded_at") is not None else _number(row, of)) - _number(others[row.get("seed")], of)
        for row in paired
    ]
    return _reading(run, paired, fmean(differences), "nats", spread=_spread(differences, paired))


@measure
def warm_up(subject: Subject, *, lesson: str, arm: str) -> Reading:
    """Return the share of the steps at which the learning rate reaches its highest value, and that value."""
    run, rows = _runs(subject, lesson, arm)
    row = rows[0]
    rates = [(step, float(rate)) for step, _, rate, _ in _curve(row) if rate is not None]
    if not rates:
        raise MissingResource(f"learning rates of the run {row.get('name')}")
    highest = max(rate for _, rate in rates)
    # A curve is thinned to some 400 points, so this is known to a quarter of a percent of the steps.
    reached = next(step for step, rate in rates if rate == highest) + 1
    return _reading(run, [row], {"share": reached / int(row["steps"]), "peak": highest}, "")


@measure
def run_settings(subject: Subject, *, lesson: str, arm: str, names: list[str]) -> Reading:
    """Return the settings of an arm's run as its trainer resolved them: the number, or several as `0.9, 0.95`."""
    run, rows = _runs(subject, lesson, arm)
    found = [_number(rows[0].get("settings", {}) | {"name": rows[0].get("name")}, name) for name in names]
    return _reading(run, rows[:1], found[0] if len(found) == 1 else ", ".join(f"{value:g}" for value in found), "")


@measure
def usual_norms(subject: Subject, *, lesson: str, arm: str) -> Reading:
    """Return the 10th and the 90th percentile of the gradient norms, without the start and the injected spike.

    The run is that of warm-up and cosine at GPT-2's size if there is one.
    """
    run, rows = _largest_runs(subject, lesson, arm, full_size_arm="cosine")
    spiked = rows[0].get("settings", {}).get("inject_spike_at")
    norms = sorted(
        float(norm)
        for step, _, _, norm in _curve(rows[0])
        if norm is not None and step != spiked and step >= SETTLING * int(rows[0]["steps"])
    )
    if len(norms) < 10:
        raise MissingResource(f"norms of at least 10 steps: the run {rows[0].get('name')} has {len(norms)}")
    found: dict[str, Scalar] = {"10th percentile": _quantile(norms, 0.1), "90th percentile": _quantile(norms, 0.9)}
    return _reading(run, rows, found, "")


@measure
def spike(subject: Subject, *, lesson: str, arm: str) -> Reading:
    """Return the norm of the injected spike before and after clipping, and the cosine between the two gradients."""
    run, rows = _runs(subject, lesson, arm)
    step, before, after, cosine = _spike(rows[0])
    return _reading(run, rows, {"before": before, "after": after, "cosine": cosine}, "", step=step)


@measure
def validation_rise(subject: Subject, *, lesson: str) -> Reading:
    """Return how far validation rises above its lowest loss while training falls, in nats, a mean over the runs.

    A run whose training is no lower at its end than at the lowest validation has a rise of 0: the two do not part. The
    details have by how much training falls from there, for each run.
    """
    run, rows = _runs(subject, lesson, "")
    rises, falls = [], []
    for row in rows:
        curve = [(int(step), float(loss)) for step, loss in row.get("validation") or [] if loss is not None]
        if len(curve) < 2:
            raise MissingResource(f"at least two validations of the run {row.get('name')}")
        step, lowest = min(curve, key=lambda point: point[1])
        falls.append(_training_at(row, step) - _number(row, "last_loss"))
        rises.append(curve[-1][1] - lowest if falls[-1] > 0 else 0.0)
    return _reading(run, rows, fmean(rises), "nats", spread=_spread(rises, rows), training_falls=falls)


@measure
def lost_share(subject: Subject, *, lesson: str, arm: str) -> Reading:
    """Return the mean share of updates that an arm's steps lost: weights that a step left bitwise unchanged."""
    run, rows = _runs(subject, lesson, arm)
    shares = [float(share) for row in rows for _, share in row.get("lost_updates") or []]
    if not shares:
        raise MissingResource(f"lost updates: the run {rows[0].get('name')} did not measure them")
    return _reading(
        run, rows, fmean(shares), "of the updates", spread={"low": min(shares), "high": max(shares), "over": "steps"}
    )


@measure
def start_above_uniform(subject: Subject, *, lesson: str) -> Reading:
    """Return the loss of the first step minus the logarithm of the vocabulary, in nats, the mean over the runs."""
    run, rows = _runs(subject, lesson, "")
    above = [_number(row, "first_loss") - math.log(_number(row, "vocabulary_size")) for row in rows]
    return _reading(run, rows, fmean(above), "nats", spread=_spread(above, rows))


@measure
def common_words_at_loss(subject: Subject, *, lesson: str, loss: float) -> Reading:
    """Return the share of common English words among the words of the text that was sampled at about this loss.

    A loss above 10 is that of the start. The details have the text. Raises MissingResource if no sample is near, or if
    the run has another vocabulary than GPT-2's, whose losses have another scale.
    """
    run, rows = _runs(subject, lesson, "")
    rows = [row for row in rows if row.get("vocabulary_size") == GPT2_VOCABULARY]
    samples = [sample for row in rows for sample in row.get("samples") or [] if sample.get("loss") is not None]
    if not samples:
        raise MissingResource("text sampled in a run with GPT-2's vocabulary: `make lessons` has none")
    nearest = min(samples, key=lambda sample: abs(float(sample["loss"]) - loss))
    if abs(float(nearest["loss"]) - loss) > NEAR and loss < 10:
        raise MissingResource(f"text sampled at a loss of {loss:g}: the nearest is at {float(nearest['loss']):.2f}")
    words = re.findall(r"[a-z']+", str(nearest["text"]).lower())
    share = sum(word in COMMON_WORDS for word in words) / max(1, len(words))
    return _reading(
        run, rows, share, "of the words", loss=nearest["loss"], step=nearest["step"], text=str(nearest["text"])[:160]
    )


def _runs(subject: Subject, lesson: str, arm: str) -> tuple[RecordedRun, list[Row]]:
    """Return the newest lessons run, and its rows of one lesson and arm ("" for every arm)."""
    run = newest_run("lessons", subject.name)
    rows = [row for row in run.of_kind("run") if row.get("lesson") == lesson and arm in ("", row.get("arm"))]
    if not rows:
        raise MissingResource(f"`make lessons` has not done the run {lesson}{f'-{arm}' if arm else ''} yet")
    return run, rows


def _full_size_runs(subject: Subject, arm: str) -> tuple[RecordedRun, list[Row]]:
    """Return the newest lessons run, and its rows of an arm at the lessons' own size: their losses have its scale."""
    run = newest_run("lessons", subject.name)
    named = [row for row in run.of_kind("run") if row.get("arm") == arm]
    if rows := [row for row in named if _is_full_size(row)]:
        return run, rows
    sizes = sorted({f"{int(row.get('parameters') or 0):,}" for row in named})
    raise MissingResource(
        f"a run of {arm} at GPT-2's size: on a GPU, `gpt-harness lessons --preset gpt2-124m --only {arm} --budget 8`"
        + (f" (the newest lessons run has models of {', '.join(sizes)} parameters)" if sizes else "")
    )


def _largest_runs(subject: Subject, lesson: str, arm: str, *, full_size_arm: str) -> tuple[RecordedRun, list[Row]]:
    """Return the newest lessons run, and its rows of an arm at GPT-2's size, or else of a lesson and arm."""
    run = newest_run("lessons", subject.name)
    rows = [row for row in run.of_kind("run") if row.get("arm") == full_size_arm and _is_full_size(row)]
    return (run, rows) if rows else _runs(subject, lesson, arm)


def _is_full_size(row: Row) -> bool:
    return row.get("vocabulary_size") == GPT2_VOCABULARY and int(row.get("parameters") or 0) >= SMALLEST_124M


def _reading(
    run: RecordedRun, rows: Sequence[Row], value: Scalar | dict[str, Scalar], unit: str, **details: Any
) -> Reading:
    """Return a reading with the run that it was taken from, and how large its model was."""
    about = {key: rows[0].get(key) for key in ("parameters", "vocabulary_size", "steps")}
    return Reading(value, unit, {**details, "run": run.origin, "about": {**about, "runs": len(rows)}})


def _spread(values: Sequence[float], rows: Sequence[Row]) -> dict[str, Any]:
    return {"low": min(values), "high": max(values), "over": f"{len(rows)} runs" if len(rows) > 1 else "one run"}


def _number(row: Row, key: str) -> float:
    value = row.get(key)
    if not isinstance(value, int | float):
        raise MissingResource(f"{key} of the run {row.get('name')}: its row has {value!r}")
    return float(value)


def _values(rows: Sequence[Row], key: str) -> list[float]:
    return [_number(row, key) for row in rows]


def _mean(rows: Sequence[Row], key: str) -> float:
    return fmean(_values(rows, key))


def _curve(row: Row) -> list[tuple[int, float | None, float | None, float | None]]:
    """Return the points (step, loss, lr, norm) of a run. Raises MissingResource if there is none."""
    points = [point for point in row.get("curve") or [] if len(point) == 4 and point[0] is not None]
    curve = [(int(step), loss, rate, norm) for step, loss, rate, norm in points]
    if not curve:
        raise MissingResource(f"a curve of the run {row.get('name')}")
    return curve


def _training_at(row: Row, step: int) -> float:
    """Return the loss of training at a step: the mean of the recorded ones that are nearest, on both sides."""
    points = [(number, float(loss)) for number, loss, _, _ in _curve(row) if loss is not None]
    nearest = sorted(points, key=lambda point: abs(point[0] - step))[:NEIGHBOURS]
    if not nearest:
        raise MissingResource(f"losses of the run {row.get('name')}")
    return fmean(loss for _, loss in nearest)


def _spike(row: Row) -> tuple[int, float, float, float]:
    """Return the step of the injected spike, or else of the largest norm, both norms and their cosine."""
    points = [point for point in row.get("clipping") or [] if len(point) == 4 and None not in point]
    if not points:
        raise MissingResource(f"clipped steps in the run {row.get('name')}")
    injected = row.get("settings", {}).get("inject_spike_at")
    found = next((point for point in points if point[0] == injected), max(points, key=lambda point: float(point[1])))
    return int(found[0]), float(found[1]), float(found[2]), float(found[3])


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
