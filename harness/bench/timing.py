"""The timing of one call: it is warmed up, then timed in blocks, and the best call of a block is one observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from harness.bench.statistics import median, warmed_up
from harness.bench.usage import Usage
from harness.bench.work import Sample, Work
from harness.core.record_files import Row

# This recipe kept false alarms at 4 to 5% on a shared machine: the best call of a block of at least three calls and
# 30 ms is one observation, and the arms take turns, block by block, in random order.
BLOCK_CALLS = 3
BLOCK_SECONDS = 0.030
# A call this long averages over eight such blocks: it is a block by itself, and the time goes into more rounds.
LONG_CALL_SECONDS = 0.25
# The limits of warming up, which otherwise ends when the times have settled.
WARM_CALLS, WARM_SECONDS = 20, 1.0

# A GPU's second-level cache is emptied before each call by overwriting it: twice the largest (an H200's 50 MiB).
FLUSHED_BYTES = 100 * 2**20

Clock = Callable[[], float]
Timer = Callable[[Callable[[], object]], tuple[float, object]]


def timer_by_clock(clock: Clock) -> Timer:
    """Return a timer that reads `clock` before and after a call; it returns seconds and the call's output."""

    def timer(call: Callable[[], object]) -> tuple[float, object]:
        start = clock()
        output = call()
        return clock() - start, output

    return timer


def timer_by_cuda_events(device: str) -> Timer:
    """Return a timer that records CUDA events around a call on its stream; it returns seconds and the call's output.

    It empties the second-level cache first, so that a call finds nothing of the one before.
    """
    import torch  # here: the processes of `bisect-perf` read a clock alone, and start sooner without torch

    trash = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device=device)

    def timer(call: Callable[[], object]) -> tuple[float, object]:
        trash.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        output = call()
        end.record()
        end.synchronize()
        return float(start.elapsed_time(end)) / 1e3, output  # elapsed_time is in milliseconds

    return timer


def warm_up(
    work: Work, clock: Clock, timer: Timer, *, made: Sequence[float] = (), witnessed_seconds: float = 0.0
) -> list[float]:
    """Call `work` until its times have settled or a limit is reached, and return the times, after those `made` already.

    A call that was long under the profiler too (`witnessed_seconds`) is made once, for its time: it was called already
    to be verified and to be witnessed.
    """
    work.prepare()
    series = list(made)
    started = clock()
    while not series or (len(series) < WARM_CALLS and clock() - started < WARM_SECONDS):
        if series and (min(series[0], witnessed_seconds) > LONG_CALL_SECONDS or warmed_up(series) is not None):
            break
        series.append(timer(work.call)[0])
    return series


def calls_per_block(estimates: Sequence[float]) -> int:
    """Return the number of calls in a block, given an estimate of each arm's seconds.

    It is one number for all arms, because the best of six calls is lower than the best of three.
    """
    if max(estimates) > LONG_CALL_SECONDS:
        return 1
    fastest, slowest = max(min(estimates), 1e-6), max(estimates)
    # If the arms are an order of magnitude apart, the slow one's block must not use up the time of many rounds.
    return max(BLOCK_CALLS, min(math.ceil(BLOCK_SECONDS / fastest), int(LONG_CALL_SECONDS / slowest)))


class Block:
    """Calls in a row, of which the best is one observation. `best` has the seconds of one call for each round.

    `count` gives the process's usage so far. `used` has what was used in each round, and `wall_seconds` its time.
    `sample` is what was kept of the last call, if the work keeps anything.
    """

    def __init__(
        self, work: Work, calls: int, clock: Clock, timer: Timer, count: Callable[[], Usage] | None = None
    ) -> None:
        self.work, self.calls, self.clock, self.timer, self.count = work, calls, clock, timer, count
        self.best: list[float] = []
        self.used: list[Usage] = []
        self.wall_seconds: list[float] = []
        self.sample: Sample | None = None

    def run(self, number: int) -> None:
        """Run one block on the input of that number and append its best call to `best`."""
        if self.work.use_input:
            self.work.use_input(number)
        self.work.prepare()
        before, started, best = self.count() if self.count else None, self.clock(), math.inf
        for _ in range(self.calls):
            output = None  # so that a call finds the memory of the one before it free
            seconds, output = self.timer(self.work.call)
            best = min(best, seconds)
        self.wall_seconds.append(self.clock() - started)
        if self.count and before:
            self.used.append(self.count().since(before))
        self.best.append(best)
        if self.work.sample:
            self.sample = self.work.sample(output, number)


def ceiling_block(work: Work, calls: int, clock: Clock, timer: Timer) -> Block:
    """Return a block of a ceiling, beside arms that have `calls` calls in theirs.

    It is as short as an arm's, so that it takes little of the round, and has at least three calls if an arm's block has
    three or more. A few calls warm it up: a ceiling is the best that it reaches in many rounds.
    """
    once = min(timer(work.call)[0] for _ in range(BLOCK_CALLS))
    return Block(work, max(min(calls, BLOCK_CALLS), int(BLOCK_SECONDS / max(once, 1e-3))), clock, timer)


def ceiling_rate(work: Work, times: Sequence[float]) -> Row:
    """Return the cost of a ceiling and the rate that it reached in its median block.

    The rate is in FLOP/s, bytes/s, or seconds an operation.
    """
    middle = median(times)
    rate = work.flops / middle if work.flops else work.moved_bytes / middle if work.moved_bytes else None
    if rate is None and work.operations:
        rate = middle / work.operations
    costs = {"flops": work.flops, "moved_bytes": work.moved_bytes, "operations": work.operations}
    return {**costs, "computes": work.computes, "rate": rate}
