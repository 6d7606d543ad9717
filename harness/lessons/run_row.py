"""A run of the trainer as a row of a record file: its curves, thinned, and what they come to."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from harness.core.record_files import Row
from harness.lessons.lesson_file import LessonRun
from harness.lessons.training_log import NOT_FINITE, Event, TrainingLog, as_loss

MOST_POINTS = 400  # of a curve
EXPERT_POINTS = 120  # each has a share for every expert of every layer
LAST_STEPS = 20  # `last_loss` is the mean over these: a single step's loss scatters by about 0.1
SAMPLE_STEPS = 5
EXPLOSION_STEPS = 10
EXPLOSION_RISE = 1.0  # nats
# As the page states it; `exploded_at` computes it.
EXPLOSION = (
    f"A run explodes at the first step at which its loss is not finite, or at which the median loss of the last "
    f"{EXPLOSION_STEPS} steps is more than {EXPLOSION_RISE:g} nat above the first loss, or above the lowest that "
    "this median has been."
)


def run_row(run: LessonRun, log: TrainingLog, *, seconds: float, made: Mapping[str, Any]) -> Row:
    """Return the row of a run: settings, losses, curves, samples, norms and speed.

    `seconds` is the wall time of its processes. `made` says when and by which version it was made. Curves have at most
    MOST_POINTS points and always the first, the last, and the step with the largest norm.
    """
    losses = log.losses
    speeds = [float(event["tokens_per_second"]) for event in log.steps if event.get("tokens_per_second")]
    validation = [(event["step"], as_loss(event.get("loss"))) for event in log.validations]
    finite = [loss for _, loss in validation if math.isfinite(loss)]
    by_step = {event["step"]: loss for event, loss in zip(log.steps, losses, strict=True)}
    with_shares = [event for event in log.steps if event.get("expert_shares")]
    largest = max(log.steps, key=_norm, default=None)
    must = {largest["step"]} if largest else set()
    return {
        "kind": "run",
        "name": run.name,
        "lesson": run.lesson,
        "arm": run.arm,
        "seed": run.seed,
        "settings": settings_of(run, log),
        "text_characters": run.text_characters,
        "vocabulary_size": log.header.get("vocabulary_size"),
        "train_tokens": log.header.get("train_tokens"),
        "tokens_per_step": log.header.get("tokens_per_step"),
        "device": log.header.get("device"),
        "parameters": log.header.get("parameters"),
        "active_parameters": log.header.get("active_parameters"),
        "steps": len(log.steps),
        "tokens": log.steps[-1].get("tokens") if log.steps else 0,
        "first_loss": losses[0] if losses else None,
        "last_loss": fmean(losses[-LAST_STEPS:]) if losses else None,
        "best_validation": min(finite, default=None),
        "exploded_at": exploded_at(log),
        "curve": [
            [event["step"], as_loss(event.get("loss")), event.get("lr"), event.get("norm")]
            for event in thinned(log.steps, must)
        ],
        "validation": [list(point) for point in validation],
        "samples": [
            {"step": event["step"], "loss": loss_around(by_step, event["step"]), "text": str(event.get("text", ""))}
            for event in log.samples
        ],
        "clipping": [
            [event["step"], event.get("norm"), event.get("clipped_norm"), event.get("clip_cosine")]
            for event in thinned(log.steps, must)
        ],
        "lost_updates": [
            [event["step"], event["lost_updates"]]
            for event in thinned([event for event in log.steps if event.get("lost_updates") is not None], set())
        ],
        "expert_shares": [
            [event["step"], event["expert_shares"], event.get("balance")]
            for event in thinned(with_shares, set(), most=EXPERT_POINTS)
        ],
        "speed": [[event["step"], event.get("tokens_per_second")] for event in thinned(log.steps, must)],
        "tokens_per_second": median(speeds) if speeds else None,
        "seconds": seconds,
        "ended": log.ended,
        "made": dict(made),
    }


def settings_of(run: LessonRun, log: TrainingLog) -> dict[str, Any]:
    """Return every setting as the trainer resolved it, those of its preset too, with the name of a text that is cut."""
    text = run.settings.get("text", "tinyshakespeare")
    return {**log.header.get("config", {}), **run.settings, "text": text}


def exploded_at(log: TrainingLog) -> int | None:
    """Return the step at which the loss exploded, as EXPLOSION defines it; None if it did not."""
    window: deque[float] = deque(maxlen=EXPLOSION_STEPS)
    lowest = next(iter(log.losses), math.inf)
    for event, loss in zip(log.steps, log.losses, strict=True):
        if not math.isfinite(loss):
            return int(event["step"])
        window.append(loss)
        if len(window) < EXPLOSION_STEPS:  # of two losses the median is no median
            continue
        middle = median(window)
        if middle > lowest + EXPLOSION_RISE:
            return int(event["step"])
        lowest = min(lowest, middle)
    # The trainer stops before the step whose loss or gradient is not finite, and its end says so.
    return int(log.end["step"]) if log.ended == NOT_FINITE else None


def loss_around(losses: Mapping[int, float], step: int) -> float | None:
    """Return the mean loss of training of up to SAMPLE_STEPS steps on each side of `step` completed steps.

    Of the start it is the loss of step 0 alone. None if no step is near.
    """
    reach = min(SAMPLE_STEPS, step)
    near = [losses[number] for number in range(step - reach, step + reach + 1) if number in losses]
    return fmean(near) if near else None


def thinned(events: Sequence[Event], must: set[int], *, most: int = MOST_POINTS) -> list[Event]:
    """Return at most `most` of the events, evenly spaced, with the first, the last and those of the steps `must`.

    They are picked, not averaged, so that each point is a step that was.
    """
    room = most - len(must)
    if len(events) <= room:
        return list(events)
    picked = {round(index * (len(events) - 1) / (room - 1)) for index in range(room)}
    return [event for index, event in enumerate(events) if index in picked or event["step"] in must]


def _norm(event: Event) -> float:
    norm = as_loss(event.get("norm"))
    return norm if math.isfinite(norm) else -1.0
