"""Rounds of timing: one block of every arm in random order, until the intervals are narrow or the time is spent."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from harness.bench.result import ComparisonResult
from harness.bench.statistics import (
    FEWEST_ROUNDS,
    FEWEST_WARM,
    Ratio,
    busy_rounds,
    deciding_half_width,
    median,
    paired_ratio,
    warmed_up,
)
from harness.bench.timing import (
    LONG_CALL_SECONDS,
    Block,
    Clock,
    Timer,
    calls_per_block,
    ceiling_block,
    ceiling_rate,
    warm_up,
)
from harness.bench.usage import Usage
from harness.bench.work import ARM_ERRORS, Verification, Work

# The rounds after which the intervals are checked, for their width alone: stopping on significance would stop at each
# chance difference. A long call's rounds are few, so that they are checked from four on.
INTERVAL_CHECKS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)
MANY_ROUNDS = 48
# A ratio so many half-widths from 1 is known well enough. No pair of identical arms comes near it by chance, so that
# this is no stop at a difference that looks significant.
LARGE = 10
# The difference that a comparison is to decide about: below it, nobody changes a program. Of calls so long that few
# rounds can be made, a larger one.
EFFECT, EFFECT_OF_LONG_CALLS = 0.05, 0.10
# At least eight short rounds are made: the trimmed mean leaves out one at either end. Of four it leaves out none.
SHORT_ROUND_SECONDS, FEWEST_SHORT_ROUNDS = 2.0, 8
# A long round in which the machine was plainly busy is repeated: of four, none can be left out.
MOST_REPEATED_ROUNDS = 2
# If only a part of a call was witnessed, nothing else says that the first time of the whole is not a stall.
LONG_FIRST_SECONDS = 2 * LONG_CALL_SECONDS


def time_in_rounds(
    result: ComparisonResult,
    works: dict[str, Work],
    ceilings: Mapping[str, Work],
    *,
    rng: random.Random,
    seconds: float,
    most_seconds: float,
    effect: float | None,
    clock: Clock,
    timer: Timer,
    count: Callable[[], Usage] | None,
) -> None:
    """Fill in the block minima of each arm in `works` and each ceiling, in about `seconds`.

    The rounds end when every interval is narrow enough to decide about `effect`, or when the time is spent. At least
    FEWEST_ROUNDS are made even if they take longer, and FEWEST_SHORT_ROUNDS of short ones. They go on for up to
    `most_seconds` if the intervals are likely to be narrow by then. An arm that raises is rejected in `result`, and
    removed from `works` if it did so while it was warmed up.
    """
    started = clock()
    blocks = {name: Block(work, 1, clock, timer, count) for name, work in works.items()}
    first = _first_round(result, works, blocks, rng)
    counts = bool(first) and all(seconds > _long_first_seconds(result, name) for name, seconds in first.items())
    warm = {name: [] for name in works} if counts else _warm_up_arms(result, works, first, clock, timer)
    if not warm:
        return
    calls = result.calls_per_block = 1 if counts else calls_per_block([min(series) for series in warm.values()])
    if not counts:
        blocks = {name: Block(work, calls, clock, timer, count) for name, work in works.items()}
    ceiling_blocks = {name: ceiling_block(work, calls, clock, timer) for name, work in ceilings.items()}
    result.seconds = {name: block.best for name, block in blocks.items()}
    result.effect = effect or (EFFECT_OF_LONG_CALLS if calls == 1 else EFFECT)
    round_seconds: list[float] = []
    for rounds in range(1, INTERVAL_CHECKS[-1] + 1):
        made = counts and rounds == 1  # only the ceilings of that round are left to measure
        round_started = started if made else clock()
        _run_round(result, {} if made else blocks, ceiling_blocks, rng, rounds if counts else rounds + bool(first))
        round_seconds.append(clock() - round_started)
        short = median(round_seconds) <= SHORT_ROUND_SECONDS
        fewest = FEWEST_SHORT_ROUNDS if short else FEWEST_ROUNDS + _repeated_rounds(result)
        if rounds < fewest:
            continue
        if rounds in INTERVAL_CHECKS and _all_narrow(result):
            result.stopped = "interval"
            break
        spent, soon = clock() - started, max(round_seconds)
        if spent + soon > seconds:
            more = max(soon, (rounds_to_decide(_ratios(result), result.effect) - rounds) * median(round_seconds))
            if spent + more > most_seconds:
                result.stopped = "budget"
                break
    else:
        result.stopped = "rounds"
    result.timing_seconds = clock() - started
    for name, block in ceiling_blocks.items():
        result.ceilings[name] = {"seconds": block.best, **ceiling_rate(ceilings[name], block.best)}
    for name, block in blocks.items():
        _record_conditions(result, name, warm[name], block)
        if block.sample:
            result.samples[name] = block.sample


def _first_round(
    result: ComparisonResult, works: dict[str, Work], blocks: dict[str, Block], rng: random.Random
) -> dict[str, float]:
    """Return the time of one call of each arm, if all of them may be long, else nothing.

    Each was called already to be verified and to be witnessed. If all are long, this is the first round. That is all or
    none, because an arm that was called once more than its control would start warmer. An arm that raises is removed
    from `works`.
    """
    witnessed = [result.witnessed_seconds.get(name) for name in works]
    if any(seconds is None or 0 < seconds <= LONG_CALL_SECONDS for seconds in witnessed):
        return {}
    _run_round(result, blocks, {}, rng, 1)
    for name in works.keys() - blocks.keys():
        del works[name]
    return {name: block.best[0] for name, block in blocks.items()}


def _long_first_seconds(result: ComparisonResult, name: str) -> float:
    """Return the time above which an arm's first call says that it is long."""
    return LONG_CALL_SECONDS if result.witnessed_seconds[name] else LONG_FIRST_SECONDS


def _warm_up_arms(
    result: ComparisonResult, works: dict[str, Work], first: Mapping[str, float], clock: Clock, timer: Timer
) -> dict[str, list[float]]:
    """Return the times of each arm's calls until they settled, `first` among them.

    Removes an arm that raises from `works`.
    """
    warm: dict[str, list[float]] = {}
    for name, work in list(works.items()):
        made, witnessed = [first[name]] if first else [], result.witnessed_seconds.get(name, 0.0)
        try:
            warm[name] = warm_up(work, clock, timer, made=made, witnessed_seconds=witnessed)
        except ARM_ERRORS as error:
            del works[name]
            result.reject(name, Verification.from_error(error, "while it was warmed up"))
    return warm


def _run_round(
    result: ComparisonResult,
    blocks: dict[str, Block],
    ceiling_blocks: dict[str, Block],
    rng: random.Random,
    number: int,
) -> None:
    """Run one block of every arm and every ceiling, in random order, on the input of that number."""
    every = {**blocks, **{f"ceiling {name}": block for name, block in ceiling_blocks.items()}}
    for name in rng.sample(list(every), len(every)):
        try:
            every[name].run(number)
        except ARM_ERRORS as error:
            if name not in blocks:
                raise
            del blocks[name]
            result.reject(name, Verification.from_error(error, "while it was timed"))


def _record_conditions(result: ComparisonResult, name: str, warming: Sequence[float], block: Block) -> None:
    """Record whether the times had settled before they counted, and what the blocks used of the machine.

    None if there were only a few long calls, which show nothing. Block minima show nothing either: they move with the
    machine.
    """
    figures = result.figures.setdefault(name, {})
    reached = warmed_up(warming) is not None if len(warming) >= FEWEST_WARM else None
    figures["warm"] = {"reached": reached, "calls": len(warming)}
    if reached is False:
        result.notes.append(f"{name} was not warm: its times still fell after {len(warming)} calls of warming up")
    if block.used and (wall := math.fsum(block.wall_seconds)):
        calls = block.calls * len(block.used)
        used = functools.reduce(Usage.and_also, block.used)
        figures.setdefault("witness", {})["busy_threads"] = round(used.processor_seconds / wall, 2)
        figures["usage"] = {
            "processor_seconds": used.processor_seconds / calls,  # these two of one call
            "fresh_pages": round(used.fresh_pages / calls),
            "preemptions": round(used.preemptions / wall, 1),  # a second
            "stolen": used.stolen_seconds / wall,  # cores
        }


def _repeated_rounds(result: ComparisonResult) -> int:
    """Return how many rounds to repeat: those in which the machine was plainly busy, at most MOST_REPEATED_ROUNDS."""
    return min(MOST_REPEATED_ROUNDS, max((busy_rounds(pairs) for pairs in result.paired_rounds()), default=0))


def rounds_to_decide(ratios: Iterable[Ratio], effect: float) -> int:
    """Return about how many rounds it takes until every interval is narrow enough, by their widths so far."""
    most = max((ratio.rounds * _times_too_wide(ratio, effect) ** 2 for ratio in ratios), default=0.0)
    return math.ceil(max(most, math.sqrt(MANY_ROUNDS * min(most, MANY_ROUNDS))))


def _all_narrow(result: ComparisonResult) -> bool:
    """Return True if the interval of every ratio is narrow enough to stop."""
    # Among many runs the ones whose interval is narrow by chance would stop first, and their intervals would cover the
    # true ratio less often. So an early stop takes a narrower interval.
    found = _ratios(result)
    return all(_times_too_wide(each, result.effect) <= min(1, math.sqrt(each.rounds / MANY_ROUNDS)) for each in found)


def _times_too_wide(ratio: Ratio, effect: float) -> float:
    """Return the interval's half-width over the one that decides; or that knows a large ratio to a tenth of itself."""
    return ratio.half_width / max(deciding_half_width(effect), abs(math.log(ratio.ratio)) / LARGE)


def _ratios(result: ComparisonResult) -> list[Ratio]:
    return [paired_ratio(*zip(*rounds, strict=True)) for rounds in result.paired_rounds()]
