"""What a run of the trainer wrote: the events of its log.jsonl, by kind."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LOG = "log.jsonl"
NOT_FINITE = "not finite"  # how a run ended whose loss or gradient was NaN or infinite
_NOT_FINITE = re.compile(r"the (loss|gradient norm) is (nan|inf|-inf)\b")  # in the message of the trainer's failure
Event = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingLog:
    """The events of a log: of steps, validations and samples each, in their order, one for each number of a step.

    `header` is that of the first start, `end` the last end. A loss that is null in the log is NaN.
    """

    header: Event = field(default_factory=dict)
    steps: tuple[Event, ...] = ()
    validations: tuple[Event, ...] = ()
    samples: tuple[Event, ...] = ()
    end: Event = field(default_factory=dict)

    @property
    def ended(self) -> str:
        """The reason of the last end: `finished`, `budget`, `interrupted`, `failed`, NOT_FINITE; empty if killed."""
        reason = str(self.end.get("reason", ""))
        failed = reason == "failed" and _NOT_FINITE.search(str(self.end.get("message", "")))
        return NOT_FINITE if failed else reason

    @property
    def steps_done(self) -> int:
        """The number of steps up to the last one that was logged, which need not be every one."""
        return int(self.steps[-1]["step"]) + 1 if self.steps else 0

    @property
    def losses(self) -> list[float]:
        """The loss of each step; NaN where it was not finite."""
        return [as_loss(event.get("loss")) for event in self.steps]


def read_training_log(path: Path) -> TrainingLog:
    """Return the events in `path`; an empty log if there is no file. Lines that are no event are left out."""
    found: dict[str, dict[int, Event]] = {}
    header: Event = {}
    end: Event = {}
    for line in _lines(path):
        try:
            event = json.loads(line)
        except ValueError:  # the last line of a process that was killed, or that is being written
            continue
        if not isinstance(event, dict) or not isinstance(step := event.get("step"), int):
            continue
        kind = str(event.get("event"))
        if kind == "header":
            header = header or event
        # A run that went on after its end has not ended.
        end = event if kind == "end" else end if kind in ("header", "checkpoint") else {}
        found.setdefault(kind, {})[step] = event
    ordered = {kind: tuple(events[step] for step in sorted(events)) for kind, events in found.items()}
    return TrainingLog(
        header, ordered.get("step", ()), ordered.get("validation", ()), ordered.get("sample", ()), end
    )  # fmt: skip


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").split("\n")
    except FileNotFoundError:
        return []


def as_loss(value: object) -> float:
    """Return a number as a float, and NaN for null: JSON has no NaN, so a log writes null."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
