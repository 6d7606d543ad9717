"""Replay of measured times through pytest-benchmark's single-use fixture, by a virtual clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class VirtualClock:
    """A clock that only `now` moves. As the fixture's timer it makes a round last exactly as long as it should."""

    __name__ = "interleaved_block_minima"  # the name of the timer in the table and the JSON

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Return the time that the clock was set to."""
        return self.now

    def reset(self) -> None:
        """Set the clock to zero, so that a round has no rounding error of a sum."""
        self.now = 0.0


CLOCK = VirtualClock()


def replay(benchmark: Any, seconds: Iterable[float], extra_info: Mapping[str, Any]) -> None:
    """Give `benchmark` the statistics of `seconds`, one round each; its timer must be CLOCK."""
    remaining = iter(times := list(seconds))

    def one_round() -> None:
        CLOCK.now = next(remaining, 0.0)

    benchmark.extra_info.update(extra_info)
    benchmark.pedantic(one_round, setup=CLOCK.reset, rounds=len(times), iterations=1)


class UnverifiedError(Exception):
    """Raised for an arm whose answer is wrong, which has no time to show."""


def refuse(benchmark: Any, message: str) -> None:
    """Use the fixture without a time and raise UnverifiedError: the arm gets no row in the table or the JSON."""

    def no_round() -> None:
        raise UnverifiedError(message)

    benchmark.pedantic(no_round)
