"""Measures of what a run depends on: on its seed, and on nothing else; and of what resuming it loses."""

from __future__ import annotations

from harness.core.errors import MissingAbility
from harness.measures.training.batches.token_streams import Batches
from harness.measures.training.runs.run_comparison import (
    EQUAL,
    differences,
    first_cause,
    same_batches,
    same_part,
    same_random_state,
)
from harness.measures.training.runs.validation import evaluations_of
from harness.suites.measure_registry import Reading, measure
from harness.training.events import Forward
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording


@measure
def differences_of_runs(program: Trains, *, rehearsal: str = "plain", other: str = "again") -> Reading:
    """Return what differs first in each step of two rehearsals, bitwise: "equal", or "the batch differs" and so on."""
    a, b = program.record(rehearsal), program.record(other)
    if not a.steps or len(a.steps) != len(b.steps):
        counts = f"'{rehearsal}' has {len(a.steps)} optimizer steps and '{other}' {len(b.steps)}"
        return Reading({"number of steps": "the number of steps differs"}, "", {"hint": counts})
    found = differences(a, b, list(zip(a.steps, b.steps, strict=True)))
    cause = first_cause(found)
    if "random state" in cause and (line := _line_that_seeds_again(a)):
        return Reading(found, "", {"hint": f"{cause}; it is seeded again while training runs", "line": line})
    return Reading(found, "", {"hint": cause} if cause else {})


def _line_that_seeds_again(recording: Recording) -> str:
    """Return the line that seeds a global generator after the first optimizer step; "" if none does."""
    return next((each.line for each in recording.seeded if each.step > recording.steps[0].number), "")


@measure
def effects_of_the_seed(program: Trains, *, rehearsal: str = "plain", other: str = "other-seed") -> Reading:
    """Return "different" or "equal" for the first weights and the batches of two runs with different seeds.

    Batches in the order of the text depend on no seed and are left out.
    """
    a, b = program.record(rehearsal), program.record(other)
    if not a.steps or not b.steps:
        raise MissingAbility(f"{program.name} made no optimizer step")
    first = differences(a, b, [(a.steps[0], b.steps[0])])
    weights = "different" if "weights before" in next(iter(first.values())) else EQUAL
    found = {"the weights at the start": weights}
    if a.trained and not _in_order_of_the_text(a):
        batches = [[forward.ids.tolist() for forward in recording.trained] for recording in (a, b)]
        found["the batches"] = EQUAL if batches[0] == batches[1] else "different"
    same = [what for what, value in found.items() if value == EQUAL]
    return Reading(found, "", {"hint": f"another seed leaves {' and '.join(same)} as they are"} if same else {})


def _in_order_of_the_text(recording: Recording) -> bool:
    batches = Batches(recording)
    starts = [(place.stream, place.position) if (place := batches.place(row)) else None for row in batches.training]
    known = [start for start in starts if start is not None]  # a row that the text has twice is at neither place
    return len(known) > 1 and known == sorted(known)


@measure
def differences_after_resume(program: Trains, *, rehearsal: str = "straight", other: str = "resumed") -> Reading:
    """Return what differs first in each step after a resume from the same step of a run that was never stopped.

    The resumed run was killed after a checkpoint, and its steps are numbered from there. The comparison is bitwise;
    steps that are missing or too many differ.
    """
    straight, resumed = program.record(rehearsal), program.record(other)
    first = _first_resumed(resumed).number
    expected = {step.number: step for step in straight.steps if step.number >= first}
    found = {step.number: step for step in resumed.steps}
    pairs = [(expected[number], found[number]) for number in expected if number in found]
    places = differences(straight, resumed, pairs)
    places |= _validations_after(straight, resumed)
    causes = [cause] if (cause := first_cause(places)) else []
    if expected.keys() != found.keys():
        places["number of steps"] = f"{len(found)} after the checkpoint, and {len(expected)} without a stop"
        causes.append(f"{len(found)} steps after the checkpoint, and {len(expected)} without a stop")
    return Reading(places, "", {"hint": "; ".join(causes)} if causes else {})


def _validations_after(straight: Recording, resumed: Recording) -> dict[str, str]:
    """Return "equal", or that its loss differs, for each validation of a resumed run on the windows of the other run.

    What is validated may be other weights than those that are trained: their average.
    """
    expected, found = evaluations_of(straight), evaluations_of(resumed)
    pairs = {step: (expected[step], passes) for step, passes in found.items() if step in expected}
    return {
        f"validation before step {step}": EQUAL if _same_losses(*both) else "the validation loss differs"
        for step, both in pairs.items()
        if same_batches(*both)
    }


def _same_losses(passes: list[Forward], others: list[Forward]) -> bool:
    return [each.loss for each in passes] == [each.loss for each in others]


@measure
def state_lost_by_resume(program: Trains, *, rehearsal: str = "straight", other: str = "resumed") -> Reading:
    """Return "restored" or "lost" for each part of the state at the first step after a resume.

    The parts are the weights, the optimizer's moments, the learning rate, the batch, and torch's random state if the
    program draws from it. A part is lost if it is not bitwise that of the run that was never stopped.
    """
    straight, resumed = program.record(rehearsal), program.record(other)
    step = _first_resumed(resumed)
    same = next((each for each in straight.steps if each.number == step.number), None)
    if same is None:
        raise MissingAbility(f"the run that was not stopped has no step {step.number}")
    passes, others = straight.forwards_of(step.number), resumed.forwards_of(step.number)
    parts = {
        "weights": same_part(same, step, "before"),
        "moments": same_part(same, step, "state_before"),
        "learning rate": [group.lr for group in same.groups] == [group.lr for group in step.groups],
        "batch": same_batches(passes, others),
    }
    if len({forward.rng for forward in straight.forwards("train")}) > 1:
        parts["random state"] = same_random_state(passes, others)
    lost = [name for name, equal in parts.items() if not equal]
    hint = {"hint": f"lost by the resume: {', '.join(lost)}"}
    found = {name: "restored" if equal else "lost" for name, equal in parts.items()}
    return Reading(found, "", hint if lost else {})


def _first_resumed(resumed: Recording) -> Step:
    if not resumed.steps:
        raise MissingAbility(f"{resumed.program} made no step after it was resumed")
    return resumed.steps[0]
