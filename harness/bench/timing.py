"""How a call is timed: warmed up, then in blocks of which the best call is one observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from harness.bench.statistics import median, warmed_up

if TYPE_CHECKING:
    from harness.bench.comparison import Work

# The recipe that kept false alarms at 4 to 5% on a shared machine: the best of a block of at least three calls and
# 30 ms is one observation, and the arms take turns, block by block, in random order.
BLOCK_CALLS = 3
BLOCK_SECONDS = 0.030
# A call this long averages over eight such blocks: it is a block of its own, and the time goes into more rounds.
LONG_CALL_SECONDS = 0.25
# Warming up goes on until the times have settled.
WARM_CALLS, WARM_SECONDS = 20, 1.0

# A GPU's second-level cache is emptied before each call by writing over it: twice the largest (an H200's 50 MiB).
FLUSHED_BYTES = 100 * 2**20

Clock = Callable[[], float]
Timer = Callable[[Callable[[], object]], float]


def by_clock(clock: Clock) -> Timer:
    """A timer that reads `clock` before a call and after it."""

    def timed(call: Callable[[], object]) -> float:
        start = clock()
        call()
        return clock() - start

    return timed


def by_events(device: str) -> Timer:
    """A timer of CUDA's own: events around the call on its stream, and nothing of the call before left in the cache."""
    import torch

    trash = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def timed(call: Callable[[], object]) -> float:
        trash.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3  # it counts milliseconds

    return timed


def warm_up(work: Work, clock: Clock, timed: Timer, *, watched_seconds: float = 0.0) -> list[float]:
    """Call until the times have settled, or the limit is reached: the times of the calls.

    A long call, one that took long when it was watched as well, is made once, for its time: it has been verified and
    watched, which were calls too.
    """
    work.prepare()
    series: list[float] = []
    begun = clock()
    while len(series) < WARM_CALLS and (not series or clock() - begun < WARM_SECONDS):
        series.append(timed(work.call))
        if min(series[0], watched_seconds) > LONG_CALL_SECONDS or warmed_up(series) is not None:
            break
    return series


def calls_per_block(estimates: Sequence[float]) -> int:
    """One count for all arms: the best of six calls is lower than the best of three."""
    if max(estimates) > LONG_CALL_SECONDS:
        return 1
    fastest, slowest = max(min(estimates), 1e-6), max(estimates)
    # Where arms are an order of magnitude apart, the slow one's block must not eat the time of many rounds.
    return max(BLOCK_CALLS, min(math.ceil(BLOCK_SECONDS / fastest), int(LONG_CALL_SECONDS / slowest)))


class Block:
    """Calls in a row of which the best is one observation; `best` has one a round."""

    def __init__(self, work: Work, calls: int, clock: Clock, timed: Timer, busy: Clock | None = None) -> None:
        self.work, self.calls, self.clock, self.timed, self.busy = work, calls, clock, timed, busy
        self.best: list[float] = []
        self._wall = self._spent = 0.0

    def run(self) -> None:
        """One block."""
        self.work.prepare()
        spent, begun = self.busy() if self.busy else 0.0, self.clock()
        best = min(self.timed(self.work.call) for _ in range(self.calls))
        self._wall += self.clock() - begun
        self._spent += self.busy() - spent if self.busy else 0.0
        self.best.append(best)

    @property
    def cores(self) -> float | None:
        """How many cores were at work on average; None where nobody counted."""
        return self._spent / self._wall if self.busy and self._wall else None


def rate(work: Work, times: Sequence[float]) -> dict[str, Any]:
    """What a ceiling reached in its median block: FLOP/s, byte/s, or seconds an operation."""
    middle = median(times)
    rate = work.flops / middle if work.flops else work.moved_bytes / middle if work.moved_bytes else None
    if rate is None and work.operations:
        rate = middle / work.operations
    costs = {"flops": work.flops, "moved_bytes": work.moved_bytes, "operations": work.operations}
    return {**costs, "computes": work.computes, "rate": rate}


def yardstick(work: Work, calls: int, clock: Clock, timed: Timer) -> Block:
    """A block of a ceiling beside arms with so many calls in theirs: as short as an arm's, so that it takes little of
    the round, and the best of three calls where an arm's is the best of three or more.

    A few calls warm it up: a ceiling is the best that it reaches, in rounds enough.
    """
    once = min(timed(work.call) for _ in range(BLOCK_CALLS))
    return Block(work, max(min(calls, BLOCK_CALLS), int(BLOCK_SECONDS / max(once, 1e-3))), clock, timed)
