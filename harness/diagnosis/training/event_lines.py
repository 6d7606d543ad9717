"""The user's line of each event of a recording, as `train.py:118: source`; "" where the recorder saw none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

from harness.training.events import Forward, Zeroed
from harness.training.recording import Recording

VALIDATION = "validation"  # how the place of a failure in a validation batch begins


def of_the_ids(recording: Recording, place: str) -> str:
    """Return the line on which the token ids of a batch are chosen, or else that of its forward pass."""
    return _first(line for each in _passes(recording, place) for line in (each.ids_line, each.line))


def of_the_draw(recording: Recording, place: str) -> str:
    """Return the line that calls the function in which the token ids of a batch are chosen, or else that line."""
    return _first(line for each in _passes(recording, place) for line in (each.drawn_line, each.ids_line, each.line))


def of_the_targets(recording: Recording, place: str) -> str:
    """Return the line on which the targets of a batch are chosen, or else that of the loss."""
    passes = _passes(recording, place)
    return _first(line for each in passes for line in (each.targets_line, each.loss_line, each.line))


def of_the_forward(recording: Recording, place: str) -> str:
    """Return the line that calls the model."""
    return _first(each.line for each in _passes(recording, place))


def of_the_loss(recording: Recording, place: str) -> str:
    """Return the line that calls the loss function, or else the model."""
    return _first(line for each in _passes(recording, place) for line in (each.loss_line, each.line))


def of_the_backward(recording: Recording, place: str) -> str:
    """Return the line of the first backward pass."""
    return _first(each.line for each in recording.backward_passes)


def of_the_zeroing(recording: Recording, place: str) -> str:
    """Return the line that zeroes the gradients between two micro-batches of a step, or else the backward pass's."""
    ends = [step.order for step in recording.steps]
    passes = [each.order for each in recording.backward_passes]
    for each in recording.events:
        if isinstance(each, Zeroed) and each.line:
            end = next((order for order in ends if order > each.order), math.inf)
            start = max((order for order in ends if order < each.order), default=-1)
            if any(start < order < each.order for order in passes) and any(each.order < o < end for o in passes):
                return each.line
    return of_the_backward(recording, place)


def of_the_clipping(recording: Recording, place: str) -> str:
    """Return the line that calls torch's clipping function, or changes the gradients by hand, or else that steps."""
    clips = [clip.line for step in recording.steps for clip in recording.clips_of(step.number)]
    return _first((*clips, *(step.clip_line for step in recording.steps), of_the_step(recording, place)))


def of_the_step(recording: Recording, place: str) -> str:
    """Return the line that calls the optimizer's step."""
    return _first(each.line for each in recording.steps)


def of_the_optimizer(recording: Recording, place: str) -> str:
    """Return the line that builds the optimizer, or adds its last group."""
    return _first(line for each in recording.steps for line in (each.built_line, each.line))


def of_the_rule(recording: Recording, place: str) -> str:
    """Return where the user's own optimizer class defines its step, or else where the optimizer is built."""
    return _first(line for each in recording.steps for line in (each.rule_line, each.built_line, each.line))


def of_the_scheduler(recording: Recording, place: str) -> str:
    """Return the line that builds a scheduler of torch."""
    return _first(each.rate_line for each in recording.steps)


def of_the_validation(recording: Recording, place: str) -> str:
    """Return the line that calls the model in validation; if training uses it too, the one that calls its function."""
    trained = {each.line for each in recording.trained}
    passes = [each for each in recording.forwards() if each.validates or each.idle]
    return _first(line for each in passes for line in (each.outer_line if each.line in trained else "", each.line))


def of_the_validation_loss(recording: Recording, place: str) -> str:
    """Return the line that calls the function of the validation's loss, or else the model."""
    passes = [each for each in recording.forwards() if each.validates]
    return _first(line for each in passes for line in (each.outer_line, each.line))


def of_the_validation_ids(recording: Recording, place: str) -> str:
    """Return the line on which the token ids of a validation batch are chosen."""
    return of_the_ids(recording, VALIDATION)


def of_the_save(recording: Recording, place: str) -> str:
    """Return the line that saves a checkpoint."""
    return _first(each.line for each in reversed(recording.saves))


def of_the_load(recording: Recording, place: str) -> str:
    """Return the line that loads a checkpoint."""
    return _first(each.line for each in recording.loads)


def of_print(*words: str) -> Callable[[Recording, str], str]:
    """Return a function for the line that prints something with one of these words."""

    def line(recording: Recording, place: str) -> str:
        printed = [each for each in recording.printed if any(word in each.text.lower() for word in words)]
        return _first(each.line for each in printed)

    return line


def _passes(recording: Recording, place: str) -> list[Forward]:
    if place.startswith(VALIDATION):
        return [each for each in recording.forwards() if each.validates]
    return recording.trained


def _first(lines: Iterable[str]) -> str:
    return next(filter(None, lines), "")
