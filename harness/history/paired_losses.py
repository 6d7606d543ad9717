"""Is the loss of a changed training program worse by more than d? Runs in pairs: both programs with the same seed.

For changes that are meant to change numbers. A pair shares weights and batches, so its difference scatters much less
than the losses do. How many pairs are run is decided before the first, from pairs that do not count.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from harness.bench.statistics import student_quantile, two_sided_p
from harness.core.errors import MissingAbility
from harness.training.program import TrainingProgram
from harness.training.recording import Recording
from harness.training.rehearsals import REHEARSALS, Rehearsal

PILOT = 5  # pairs that tell the scatter, and do not count
# Of PILOT pairs: their standard deviation times this is above the true one four times in five, sqrt(4 / 1.649), by the
# lower fifth of chi-squared with 4 degrees of freedom.
SCATTER_BOUND = 1.557
FEWEST = 8  # pairs: of fewer, one run with a spike in its loss decides nothing
LEVEL = 0.95  # of each bound on the mean difference
POWER = 0.9  # wanted
LAST_PART = 5  # the loss is the mean over the last fifth of the steps
FIRST_SEED = 20_001

Kind = Literal["not worse", "worse", "not decided"]


@dataclass(frozen=True)
class Plan:
    """How many pairs are run, and how likely they are to tell, if the two programs are equal, that none is worse.

    Attributes:
        scatter: The bound on the standard deviation of the differences, in nats, that the power is computed with.
    """

    pairs: int
    power: float
    scatter: float


@dataclass(frozen=True)
class Decision:
    """The mean difference of the pairs, new less old, in nats, with its bounds, each right 19 times in 20."""

    kind: Kind
    mean: float
    low: float
    high: float


def plan(pilot: Sequence[float], worse: float, most: int) -> Plan:
    """Return the fewest pairs with POWER, at most `most`, given the differences of some pairs.

    Args:
        pilot: PILOT differences, new less old, in nats.
        worse: The difference that matters, in nats.
        most: The most pairs that may be run.
    """
    scatter = SCATTER_BOUND * statistics.stdev(pilot)
    for pairs in range(FEWEST, most + 1):
        if (found := power(pairs, scatter, worse)) >= POWER:
            return Plan(pairs, found, scatter)
    return Plan(most, power(most, scatter, worse), scatter)


def power(pairs: int, scatter: float, worse: float) -> float:
    """Return the probability that the upper bound of equal programs is below `worse`.

    Student's t stands for the noncentral one.
    """
    if scatter == 0:
        return 1.0
    freedom = pairs - 1
    spare = worse * math.sqrt(pairs) / scatter - student_quantile(LEVEL, freedom)
    tail = two_sided_p(spare, 1.0, freedom) / 2
    return 1 - tail if spare > 0 else tail


def decide(differences: Sequence[float], worse: float) -> Decision:
    """Return if the new program's loss is higher by more than `worse` nats, from the differences of the pairs."""
    mean = statistics.fmean(differences)
    reach = student_quantile(LEVEL, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    low, high = mean - reach, mean + reach
    kind: Kind = "not worse" if high < worse else "worse" if low > worse else "not decided"
    return Decision(kind, mean, low, high)


def pair_of(programs: Sequence[TrainingProgram], number: int, steps: int) -> tuple[float, float]:
    """Return the losses at the end of both programs' runs with one seed, in nats.

    Both run at once, each in processes of its own.

    Raises:
        MissingAbility: if a program has no setting for the seed, or no loss was seen.
        SubjectError: if a program fails.
    """
    rehearsal = seeded(number, steps)
    with ThreadPoolExecutor(len(programs)) as pool:
        old, new = pool.map(lambda program: last_loss(program.rehearse(rehearsal)[0], steps), programs)
    return old, new


def seeded(number: int, steps: int) -> Rehearsal:
    """Return the run with the seed of a pair: a text of known entropy, each batch of which is fresh."""
    markov = REHEARSALS["markov"]
    values = {**markov.settings, "steps": steps, "seed": FIRST_SEED + number}
    return dataclasses.replace(
        markov,
        name=f"pair-{number}",
        shows="the loss with another seed",
        settings=values,
        needs=("seed",),
        length=markov.length * max(1, -(-steps // markov.settings["steps"])),
    )


def last_loss(recording: Recording, steps: int) -> float:
    """Return the mean loss of a target over the last fifth of the steps, in nats.

    Raises MissingAbility if the program made fewer steps, or no loss was seen.
    """
    if len(recording.steps) < steps:
        raise MissingAbility(f"{recording.program} made {len(recording.steps)} steps of {steps}")
    last = [each for each in recording.trained if each.has_loss and steps - steps // LAST_PART <= each.step < steps]
    if not last:
        raise MissingAbility(f"no training loss of {recording.program} was seen")
    return math.fsum(each.total_loss for each in last) / sum(each.counted for each in last)
