"""Errors for a user's mistakes and for missing abilities and resources; each message is one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from harness.core.printable import printable


class HarnessError(Exception):
    """A mistake that the user can correct: the message says what was found, what was expected and what to do.

    It may quote a user's file or exception, and is printed: see `printable`.
    """

    def __str__(self) -> str:
        return printable(super().__str__())


class SubjectError(HarnessError):
    """A subject that does not exist, cannot be imported, or returns a value that cannot be used."""


class SuiteError(HarnessError):
    """A mistake in a suite file; the message begins with `file:line:`."""


class Missing(Exception):  # noqa: N818 - not an error: the check is skipped
    """A check needs something that is missing: it is skipped, and the message names what it needs."""


class MissingAbility(Missing):
    """The subject lacks an ability that the check judges, for instance `generate`."""


class MissingResource(Missing):
    """A text, weights or a device that the check needs is not available; the message says how to get it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown word: the nearest known word, or else all known words."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
