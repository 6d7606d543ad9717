"""Inspection of a training program: what was understood of it, seam by seam, and what is not judged."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from harness.core.errors import HarnessError, Missing
from harness.core.shipped_packages import SUITES
from harness.diagnosis.training import event_lines
from harness.measures.all_measures import measures
from harness.measures.training.batches.token_streams import Batches
from harness.measures.training.judged_rehearsals import rehearsals_of
from harness.measures.training.steps.schedule import fitted_schedule
from harness.suites.check import Check
from harness.suites.suite_file import read_suite
from harness.training.events import Forward
from harness.training.program import TrainingProgram
from harness.training.protocols import needs_a_trainer
from harness.training.recording import Recording
from harness.training.rehearsals import REHEARSALS

PLAIN, SAVES = "plain", "straight"
UNSEEN = "not seen"


@dataclass
class TrainerInspection:
    """What was understood, as a label and a text for each seam, in the order of a run; and what failed.

    `not_judged` has the checks that will be skipped, by what is missing.
    """

    spec: str
    facts: list[tuple[str, str]] = field(default_factory=list)
    not_judged: dict[str, list[str]] = field(default_factory=dict)
    error: str = ""

    def as_dict(self) -> dict[str, object]:
        """Return the inspection as JSON-ready data."""
        return {"trainer": self.spec, "facts": self.facts, "not_judged": self.not_judged, "error": self.error}


def inspect_trainer(program: TrainingProgram) -> TrainerInspection:
    """Return what was understood of a program. It is run twice: for some steps, and for its checkpoints."""
    found = TrainerInspection(program.name)
    try:
        found.facts += [("set", text) for text in _settings(program)]
        recording = program.record(PLAIN)
        found.facts += _facts(recording)
        found.facts.append(("saves", _saves(program)))
    except (HarnessError, Missing) as error:
        found.error = str(error)
    for check in _checks():
        if reason := _why_not(program, check):
            found.not_judged.setdefault(reason, []).append(f"{check.suite}/{check.id}")
    return found


def _settings(program: TrainingProgram) -> Iterator[str]:
    """Yield what the rehearsals set, by how it is set."""
    settings = program.settings
    values = REHEARSALS[PLAIN].values
    known = [word for word in values if word in settings]
    flags = [f"{settings.flags[word].name}={values[word]}" for word in known if word in settings.flags]
    names = [f"--{settings.names[word]}={values[word]}" for word in known if _how(program, word) == "name"]
    literals = [
        f"{literal.name} = {values[word]} ({literal.file.rpartition('/')[2]}:{literal.place[0]})"
        for word in known
        if _how(program, word) == "literal"
        for literal in settings.literals[word]
    ]
    for way, found in (("flags", flags), ("arguments", names), ("literals, in memory", literals)):
        if found:
            yield f"{way}: {', '.join(found)}"
    if settings.given:
        yield f"left as you chose: {', '.join(f'{word} {value}' for word, value in settings.given.items())}"
    if absent := [word for word in values if word not in settings and word not in settings.given]:
        yield f"no setting found for: {', '.join(absent)}"


def _how(program: TrainingProgram, word: str) -> str:
    settings = program.settings
    return "flag" if word in settings.flags else "name" if word in settings.names else "literal"


def _facts(recording: Recording) -> Iterator[tuple[str, str]]:
    passes, steps = recording.trained, recording.steps
    own = {name: each for name, each in recording.parameters.items() if each.alias_of is None}
    tied = [f"{name} is {each.alias_of}" for name, each in recording.parameters.items() if each.alias_of]
    count = sum(math.prod(each.shape) for each in own.values())
    yield "model", f"{len(own)} parameters with {count:,} elements{'; ' if tied else ''}{', '.join(tied)}"
    yield "data", "; ".join(_data(recording)) or f"{UNSEEN}: no token stream"
    yield "batch", _batch(passes, recording)
    first = passes[0] if passes else None
    autocast = f", under autocast to {first.autocast}" if first and first.autocast else ""
    loss = f"reduction '{first.reduction}'{autocast}" if first else ""
    yield "loss", _with(loss, event_lines.of_the_loss(recording, ""))
    yield "backward", _with(_micro_batches(recording), event_lines.of_the_backward(recording, ""))
    limits = sorted({clip.limit for step in steps for clip in recording.clips_of(step.number)})
    by = f"torch's function, limit {', '.join(f'{limit:g}' for limit in limits)}" if limits else ""
    yield (
        "clipping",
        by + f" at {event_lines.of_the_clipping(recording, '')}" if by else f"{UNSEEN} (torch's functions)",
    )
    if not steps:
        yield "optimizer", UNSEEN
        return
    yield "optimizer", _with(steps[0].optimizer, event_lines.of_the_optimizer(recording, ""))
    for number, group in enumerate(steps[0].groups):
        betas = f", betas {group.betas[0]:g} and {group.betas[1]:g}" if group.betas else ""
        eps = f", eps {group.eps:g}" if group.eps is not None else ""
        names = ", ".join(group.names[:2]) + (" ..." if len(group.names) > 2 else "")
        text = f"group {number}: {len(group.names)} parameters ({names}), decay {group.weight_decay:g}{betas}{eps}"
        yield "", text
    yield "schedule", fitted_schedule(recording)
    yield "", f"learning rates: {', '.join(f'{step.groups[0].lr:.3g}' for step in steps)}"
    yield "step", f"{len(steps)} optimizer steps; {recording.ended} {recording.message}".strip()
    yield "", f"at {event_lines.of_the_step(recording, '')}"
    yield "validates", _validation(recording)
    printed = next((each for each in recording.printed if "loss" in each.text.lower()), None)
    yield (
        "prints",
        _with(repr(printed.text.strip()[:80]), printed.line) if printed else f"{UNSEEN}: no line with 'loss'",
    )


def _with(text: str, line: str) -> str:
    return f"{text} at {line}" if line else text or UNSEEN


def _data(recording: Recording) -> Iterator[str]:
    for stream in recording.streams:
        if len(stream.ids) > 1:
            yield f"{stream.name}: {stream.length or len(stream.ids):,} tokens as {stream.dtype}"


def _batch(passes: list[Forward], recording: Recording) -> str:
    if not passes:
        return f"{UNSEEN}: no loss of ids (B, T) and targets (B, T) that a backward pass uses"
    batches = Batches(recording)
    places = [batches.place(row) for row in batches.training]
    known = f"{sum(place is not None for place in places)} of {len(places)} rows found in the data"
    shape = " x ".join(map(str, passes[0].ids.shape))
    return _with(f"ids of {shape}; {known}", event_lines.of_the_ids(recording, ""))


def _micro_batches(recording: Recording) -> str:
    counts = Counter(len(recording.forwards_of(step.number)) for step in recording.steps)
    return ", ".join(f"{count} micro-batch{'es' if count != 1 else ''} a step" for count in sorted(counts))


def _validation(recording: Recording) -> str:
    passes = [each for each in recording.forwards() if each.validates]
    if not passes:
        return f"{UNSEEN}: no pass without gradients has a loss"
    steps = sorted({each.step for each in passes})
    text = f"{len(passes) // len(steps)} passes before steps {', '.join(map(str, steps))}"
    return _with(text, event_lines.of_the_validation(recording, ""))


def _saves(program: TrainingProgram) -> str:
    """Return what a checkpoint of the program has in it; the program is run for it if it has a setting for that."""
    try:
        recording = program.record(SAVES if "save_every" in program.settings else PLAIN)
    except (HarnessError, Missing) as error:
        return f"{UNSEEN}: {error}"
    if not recording.saves:
        return f"{UNSEEN}: torch.save and safetensors were not called"
    last = recording.saves[-1]
    parts = list(dict.fromkeys(key.split(".")[0] for key in last.keys))
    return _with(f"{Path(last.path).name}: {', '.join(parts[:8])}", last.line)


def _checks() -> Iterator[Check]:
    known = measures()
    for path in sorted(SUITES.glob("*.toml")):
        for check in read_suite(path, known).checks:
            if needs_a_trainer(known[check.measure].needs):
                yield check


def _why_not(program: TrainingProgram, check: Check) -> str:
    """Return why a check will be skipped: what its rehearsals need, and the program has no setting for."""
    for rehearsal in sorted(rehearsals_of(check)):
        if reason := program.why_not(REHEARSALS[rehearsal]):
            return reason
    return ""
