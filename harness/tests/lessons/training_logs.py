"""Logs of the trainer, made by hand."""

import json

from harness.lessons.lesson_file import LessonRun

RUN = LessonRun("schedule", "cosine", 0, {"steps": 30, "clip": 1.0}, seconds=10.0)


def step(number, loss, **more):
    found = {"event": "step", "step": number, "loss": loss, "lr": 1e-3, "norm": 0.5, "clipped_norm": 0.5}
    return found | {"clip_cosine": None, "tokens": 10 * (number + 1), "seconds": 0.1, "tokens_per_second": 100.0} | more


def header(**more):
    return {"event": "header", "step": 0, "vocabulary_size": 65, "parameters": 348_096, "device": "cpu"} | more


def write_log(folder, losses, *, ending="finished", events=(), **end):
    """Write a log with a step for each loss, other events after them, and an end, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    found = [header(), *(step(number, loss) for number, loss in enumerate(losses)), *events]
    if ending:
        found.append({"event": "end", "step": len(losses), "reason": ending, **end})
    path = folder / "log.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in found))
    return path
