"""Noise with known properties: endless streams of the seconds that a machine takes for the same call."""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

Stream = Callable[[random.Random], Iterator[float]]
CALL_SECONDS = 0.004
RECORDED = Path(__file__).parent / "data" / "identical_calls.txt"


def quiet(rng: random.Random) -> Iterator[float]:
    """Yield log-normal noise of 3%."""
    while True:
        yield CALL_SECONDS * math.exp(rng.gauss(0, 0.03))


def drifting(rng: random.Random) -> Iterator[float]:
    """Yield the times of a machine that heats up: each call is 0.05% slower, 5% over a hundred, plus a random walk."""
    level = 0.0
    while True:
        level += 0.0005 + rng.gauss(0, 0.002)
        yield CALL_SECONDS * math.exp(level + rng.gauss(0, 0.03))


def with_bursts(rng: random.Random) -> Iterator[float]:
    """Yield bursts of other processes: one call in ten takes twice as long, one in a hundred ten times."""
    for seconds in quiet(rng):
        yield seconds * rng.choices([1, 2, 10], [89, 10, 1])[0]


def autocorrelated(rng: random.Random) -> Iterator[float]:
    """Yield AR(1) noise: a call has 95% of the deviation of the call before; 10% in total."""
    level, memory = 0.0, 0.95
    while True:
        level = memory * level + rng.gauss(0, 0.10 * math.sqrt(1 - memory**2))
        yield CALL_SECONDS * math.exp(level)


def in_phases(rng: random.Random) -> Iterator[float]:
    """Yield phases: about 40 calls in a row are 1.5 times slower, then about 80 are not."""
    slow = False
    for seconds in quiet(rng):
        slow ^= rng.random() < (1 / 40 if slow else 1 / 80)
        yield seconds * (1.5 if slow else 1)


def recorded(rng: random.Random) -> Iterator[float]:
    """Yield identical calls as a shared machine timed them, from a random start and in a cycle."""
    calls = recorded_calls()
    start = rng.randrange(len(calls))
    return itertools.cycle(calls[start:] + calls[:start])


@cache
def recorded_calls() -> list[float]:
    """Return the recorded calls in order; the head of the file says how they were recorded."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return [float(micros) * 1e-6 for line in lines if not line.startswith("#") for micros in line.split()]


STREAMS: dict[str, Stream] = {
    stream.__name__: stream for stream in (quiet, drifting, with_bursts, autocorrelated, in_phases, recorded)
}
