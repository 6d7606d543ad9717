"""Noise whose truth is known: endless streams of the seconds that a machine takes for one and the same call."""

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
    """Log-normal, 3%."""
    while True:
        yield CALL_SECONDS * math.exp(rng.gauss(0, 0.03))


def drifting(rng: random.Random) -> Iterator[float]:
    """A machine that heats up: each call 0.05% slower than the last, 5% over a hundred, and a random walk besides."""
    level = 0.0
    while True:
        level += 0.0005 + rng.gauss(0, 0.002)
        yield CALL_SECONDS * math.exp(level + rng.gauss(0, 0.03))


def with_bursts(rng: random.Random) -> Iterator[float]:
    """Someone else's work: one call in ten takes twice as long, one in a hundred ten times."""
    for seconds in quiet(rng):
        yield seconds * rng.choices([1, 2, 10], [89, 10, 1])[0]


def autocorrelated(rng: random.Random) -> Iterator[float]:
    """AR(1): a call remembers 95% of the deviation of the call before; 10% in all."""
    level, memory = 0.0, 0.95
    while True:
        level = memory * level + rng.gauss(0, 0.10 * math.sqrt(1 - memory**2))
        yield CALL_SECONDS * math.exp(level)


def in_phases(rng: random.Random) -> Iterator[float]:
    """A machine that is slow for some 40 calls in a row, and 1.5 times so, then itself for some 80."""
    slow = False
    for seconds in quiet(rng):
        slow ^= rng.random() < (1 / 40 if slow else 1 / 80)
        yield seconds * (1.5 if slow else 1)


def recorded(rng: random.Random) -> Iterator[float]:
    """Identical calls as a shared machine timed them, from anywhere on, and round again."""
    calls = recorded_calls()
    start = rng.randrange(len(calls))
    return itertools.cycle(calls[start:] + calls[:start])


@cache
def recorded_calls() -> list[float]:
    """The recorded calls in the order that they were made; the file's head says how."""
    lines = RECORDED.read_text(encoding="utf-8").splitlines()
    return [float(micros) * 1e-6 for line in lines if not line.startswith("#") for micros in line.split()]


STREAMS: dict[str, Stream] = {
    stream.__name__: stream for stream in (quiet, drifting, with_bursts, autocorrelated, in_phases, recorded)
}
