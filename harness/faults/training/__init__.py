"""Training programs with a known mistake, and right ones of other conventions: changes of four specimens."""

from collections.abc import Sequence

from harness.core.errors import HarnessError, did_you_mean
from harness.faults.training.changes import EPOCHS, FUNCTIONS, SCRIPT, TRAINER_CLASS, Trainer
from harness.faults.training.right_programs import RIGHT_TRAINERS
from harness.faults.training.wrong_programs import WRONG_TRAINERS

__all__ = ["EPOCHS", "FUNCTIONS", "RIGHT_TRAINERS", "SCRIPT", "TRAINER_CLASS", "WRONG_TRAINERS", "Trainer", "chosen"]


def chosen(ids: Sequence[str]) -> list[Trainer]:
    """Return the programs with these ids, or all if there are none. Raises HarnessError for an unknown id."""
    known = {trainer.id: trainer for trainer in (*WRONG_TRAINERS, *RIGHT_TRAINERS)}
    for id in ids:
        if id not in known:
            raise HarnessError(f"no training program is called '{id}'; {did_you_mean(id, known)}")
    return [known[id] for id in ids] if ids else list(known.values())
