"""Ways to look for the line of a cause in a program's source, where the line of the event is not it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from harness.diagnosis.training.source_lines import Source
from harness.training.recording import Recording

Patterns = str | tuple[str, ...]  # of a line; several are tried in turn


@dataclass(frozen=True)
class Seen:
    """What is known of a failure: its cause, the recordings that it is in, the line of its event, and the source."""

    cause: str
    recordings: Sequence[Recording]
    line: str
    source: Source


Look = Callable[[Seen], str]
"""Returns a line as `train.py:118: source`, or "" if it finds none: then the event's line is the finding's."""


def nearest(patterns: Mapping[str, Patterns]) -> Look:
    """Look for the line that is nearest to the event's and that the patterns of a cause with a word match."""

    def look(seen: Seen) -> str:
        tried = _of_cause(patterns, seen.cause)
        return next((line for each in tried if (line := seen.source.like(each, near=seen.line))), "")

    return look


def within(patterns: Mapping[str, Patterns]) -> Look:
    """Look for a line, likewise, in the function that begins at the event's line."""

    def look(seen: Seen) -> str:
        tried = _of_cause(patterns, seen.cause)
        return next((line for each in tried if (line := seen.source.within(seen.line, each))), "")

    return look


def function_around(*words: str) -> Look:
    """Look for the line that begins the function around the event, for a cause with one of these words."""
    return lambda seen: seen.source.around(seen.line) if any(word in seen.cause for word in words) else ""


def end_of_function(*words: str) -> Look:
    """Look for the last line of the function around the event, for a cause with one of these words."""
    return lambda seen: seen.source.end_of(seen.line) if any(word in seen.cause for word in words) else ""


def of_the_rate(seen: Seen) -> str:
    """Look for the line that computes the learning rate."""
    return seen.source.of_the_rate(seen.cause)


def first_of(*looks: Look) -> Look:
    """Look in several ways: the first that finds a line counts."""
    return lambda seen: next((line for look in looks if (line := look(seen))), "")


def of_the_divisor(seen: Seen) -> str:
    """Look for the line that computes what the loss is divided by, for a cause that the gradient has another scale."""
    if "loss scale" in seen.cause:
        return ""
    if "the step is made after" in seen.cause:
        return seen.source.like(r"\bif\b.*%", near=seen.line)
    return seen.source.of_the_divisor(seen.line) if "times that of the mean loss" in seen.cause else ""


def of_the_tensor(seen: Seen) -> str:
    """Look for the line that makes the first tensor that a cause names by its path in the model."""
    name = re.search(r"no parameter: (?:[\w.]*\.)?(\w+)", seen.cause)
    return seen.source.like(rf"\bself\.{name[1]}\s*=[^=]|register_buffer\(\s*.{name[1]}\b") if name else ""


def of_the_number_of_steps(seen: Seen) -> str:
    """Look for the line that ends the loop."""
    return seen.source.of_the_number_of_steps()


def _of_cause(patterns: Mapping[str, Patterns], cause: str) -> tuple[str, ...]:
    """Return the patterns of the first word that a cause has, to be tried in turn; "" is in each."""
    found = next((found for word, found in patterns.items() if word in cause), ())
    return tuple(filter(None, (found,) if isinstance(found, str) else found))
