"""What a rehearsal needs of a training program: settings, and a text of its kind."""

from __future__ import annotations

from harness.core.errors import MissingAbility, SubjectError
from harness.training.rehearsals import Rehearsal
from harness.training.setting_words import VALUES, WORDS, describe
from harness.training.settings import Settings

INSTEAD = {"accumulation": "tokens_per_step"}  # a setting that decides another one


def require(rehearsal: Rehearsal, settings: Settings, program: str, unread: str) -> None:
    """Raise MissingAbility unless all that a rehearsal needs can be set, SubjectError if that is not known.

    Args:
        rehearsal: What is to be run.
        settings: What can be set.
        program: Its name.
        unread: Why the program did not come to parse its arguments; "" if it did.
    """
    if rehearsal.source is not None and "validation_documents" in settings:
        raise MissingAbility(f"{program} trains on documents, and the text of known entropy is a single one")
    if "precision" in rehearsal.leaves and "precision" in settings and _is_float32(settings):
        raise MissingAbility(f"{program} computes in float32 by itself")
    missing = [word for word in rehearsal.needs if word not in settings and INSTEAD.get(word, word) not in settings]
    if given := [word for word in missing if word in settings.given]:
        raise MissingAbility(
            f"the user's own settings of {program} set {' and '.join(WORDS[word].what for word in given)}, "
            f"which the rehearsal '{rehearsal.name}' needs to choose; leave them out"
        )
    if missing and unread:
        raise SubjectError(f"{program} fails before it parses its arguments: {unread}")
    if missing:
        raise MissingAbility(
            f"{program} has no setting for {'; nor for '.join(map(describe, missing))}, "
            f"which the rehearsal '{rehearsal.name}' needs"
        )


def _is_float32(settings: Settings) -> bool:
    own = settings.own.get("precision")
    return own is None or str(own) in VALUES["precision"]["float32"]
