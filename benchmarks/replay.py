"""Times that were measured elsewhere, in turn, played into pytest-benchmark's single-use fixture by a virtual clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


class VirtualClock:
    """Stands where it is put. As the fixture's timer it makes a round last exactly what it is told."""

    __name__ = "interleaved_block_minima"  # under which the table and the JSON name their timer

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """The time that the clock was set to."""
        return self.now

    def reset(self) -> None:
        """Back to zero, so that no rounding of a sum gets into a round."""
        self.now = 0.0


CLOCK = VirtualClock()


def replay(benchmark: Any, seconds: Iterable[float], extra_info: Mapping[str, Any]) -> None:
    """Make `benchmark`'s statistics those of `seconds`, one round each; its timer must be CLOCK."""
    left = iter(times := list(seconds))

    def one_round() -> None:
        CLOCK.now = next(left, 0.0)

    benchmark.extra_info.update(extra_info)
    benchmark.pedantic(one_round, setup=CLOCK.reset, rounds=len(times), iterations=1)


class UnverifiedError(Exception):
    """An arm's answer was wrong, so that there is no time to show."""


def refuse(benchmark: Any, message: str) -> None:
    """Use up the fixture without a time, and raise: the arm gets no row in the table and none in the JSON."""

    def no_round() -> None:
        raise UnverifiedError(message)

    benchmark.pedantic(no_round)
