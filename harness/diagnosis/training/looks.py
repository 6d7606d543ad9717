"""Ways to look for the line of a cause in a program's source, where the line of the event is not it."""

from __future__ import annotations

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
        found = _of_cause(patterns, seen.cause)
        tried = [found] if isinstance(found, str) else found
        return next((line for each in tried if each and (line := seen.source.like(each, near=seen.line))), "")

    return look


def within(patterns: Mapping[str, str]) -> Look:
    """Look for a line, likewise, in the function that begins at the event's line."""

    def look(seen: Seen) -> str:
        pattern = _of_cause(patterns, seen.cause)
        return seen.source.within(seen.line, str(pattern)) if pattern else ""

    return look


def function_around(*words: str) -> Look:
    """Look for the line that begins the function around the event, for a cause with one of these words."""
    return lambda seen: seen.source.around(seen.line) if any(word in seen.cause for word in words) else ""


def of_the_rate(seen: Seen) -> str:
    """Look for the line that computes the learning rate."""
    return seen.source.of_the_rate(seen.cause)


def of_the_number_of_steps(seen: Seen) -> str:
    """Look for the line that ends the loop."""
    return seen.source.of_the_number_of_steps()


def _of_cause(patterns: Mapping[str, Patterns], cause: str) -> Patterns:
    """Return the patterns of the first word that a cause has; "" is in each."""
    return next((found for word, found in patterns.items() if word in cause), "")
