"""Mistakes that a user can make, and what a subject can lack: each is told in one line."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class HarnessError(Exception):
    """Something the user can mend: the message says what was found, what was expected and what to do."""


class SubjectError(HarnessError):
    """The subject does not exist, does not import, or answers with something that is no answer."""


class SuiteError(HarnessError):
    """A suite file does not say what its author meant; the message begins with `file:line:`."""


class Missing(Exception):  # noqa: N818 - no error: the check is skipped
    """Not a fault: the check needs something that is not there, so it is skipped by name."""


class MissingAbility(Missing):
    """The subject cannot do what the check judges (it has no `generate`, say)."""


class MissingResource(Missing):
    """Text, weights or a device that the check needs is not at hand; the message says how to get it."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown word: the nearest known one, or all that are known."""
    names = sorted(known)
    near = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else f"known: {', '.join(names)}"
