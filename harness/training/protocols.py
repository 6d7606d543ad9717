"""What a measure of training needs of its subject."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from harness.training.recording import Recording


def needs_a_trainer(needs: type) -> bool:
    """Return True if what a measure needs of its subject is a training program."""
    return Trains in needs.__mro__


@runtime_checkable
class Trains(Protocol):
    """A training program that can be rehearsed under the recorder."""

    name: str
    """The program, as `--trainer` names it."""

    def record(self, rehearsal: str) -> Recording:
        """Return the recording of a rehearsal, the same one each time.

        Raises `MissingAbility` if the program has no setting that the rehearsal needs, and `SubjectError` if it fails.
        """
        ...

    def record_ranks(self, rehearsal: str) -> list[Recording]:
        """Return the recordings of a rehearsal with several processes, one for each rank. Raises as `record`."""
        ...
