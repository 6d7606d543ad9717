"""Arms that do the same work, measured in turn on one machine; no time is kept for an arm whose answer is wrong."""

from __future__ import annotations

import functools
import math
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.errors import HarnessError, Missing
from harness.statistics import FEWEST_ROUNDS, Ratio, median, paired_ratio, spread

# The recipe that kept false alarms at 4 to 5% on a shared machine: the best of a block of at least three calls and
# 30 ms is one observation, and the arms take turns, block by block, in random order.
BLOCK_CALLS = 3
BLOCK_SECONDS = 0.030
# A call this long averages over eight such blocks: it is a block of its own, and the time goes into more rounds.
LONG_CALL_SECONDS = 0.25
# Looking seldom, and only at the interval's width, keeps the false alarms down; stopping on significance does not.
LOOKS = (12, 24, 48, 96)
TARGET_HALF_WIDTH = 0.01
AGAIN = "-again"  # ends the name of a twin


@dataclass(frozen=True)
class Finding:
    """Whether an arm's answer may be believed, in one line. `witness` is what was counted on the way."""

    verdict: Literal["pass", "fail", "error", "skip"]
    message: str
    witness: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Work:
    """An arm, built: `call` is timed, `prepare` comes before each block and is not, `answer` is what gets verified.

    `tokens` is how many tokens one call answers for. `ledgers` are further accounts of the bytes that one call needs
    (a closed form, a child process), beside the allocator's own.
    """

    call: Callable[[], object]
    answer: Callable[[], Any]
    tokens: int
    prepare: Callable[[], object] = lambda: None
    ledgers: Mapping[str, Callable[[], int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Arm:
    """One way to do the work. A twin is an arm built once more: its true ratio to the arm it is `twin_of` is 1."""

    name: str
    build: Callable[[], Work]
    twin_of: str | None = None


def with_twin(builders: Mapping[str, Callable[[int], Work]], *, of: str) -> tuple[Arm, ...]:
    """An arm for each builder, and a twin of the arm `of`. A builder gets the copy's number: 0, or 1 for the twin."""
    named = (Arm(name, functools.partial(build, 0)) for name, build in builders.items())
    return (*named, Arm(of + AGAIN, functools.partial(builders[of], 1), twin_of=of))


@dataclass(frozen=True)
class Comparison:
    """Arms that do the same work at one point of an axis, the control that they are held against, and the judge.

    `verify` gets an arm's name and its work, the control's first, and says whether the answer is right. `weigh`
    says whether memory is measured: the trace of a call of many thousand operations costs more than the call.
    """

    name: str
    title: str
    metric: str
    control: str
    arms: tuple[Arm, ...]
    verify: Callable[[str, Work], Finding]
    axis: str | None = None
    point: int | None = None
    weigh: bool = True

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        wanted = {self.control} | {arm.twin_of for arm in self.arms if arm.twin_of}
        if len(set(names)) < len(names) or not wanted <= set(names):
            raise HarnessError(f"comparison {self.name}: arms {names} must be distinct and hold {sorted(wanted)}")

    @property
    def label(self) -> str:
        """`attention forward, T=512`."""
        point = "" if self.point is None else f", {self.axis}={self.point}"
        return f"{self.name} {self.metric}{point}"


@dataclass
class Measured:
    """What came of a comparison. An arm is in `seconds` only when its finding is a pass."""

    comparison: Comparison
    findings: dict[str, Finding]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    ledgers: dict[str, dict[str, int]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calls_per_block: int = 0
    stopped: str = "nothing to measure"

    def against(self, name: str) -> str:
        """The arm that `name` is held against."""
        arm = next(arm for arm in self.comparison.arms if arm.name == name)
        return arm.twin_of or self.comparison.control

    def row(self) -> dict[str, Any]:
        """The comparison as one JSON line of the record holds it; seconds are block minima."""
        comparison = self.comparison
        return {
            "kind": "comparison",
            "comparison": comparison.name,
            "title": comparison.title,
            "axis": comparison.axis,
            "point": comparison.point,
            "metric": comparison.metric,
            "control": comparison.control,
            "calls_per_block": self.calls_per_block,
            "stopped": self.stopped,
            "notes": self.notes,
            "arms": [self._arm_row(name) for name in self.findings],
            "ratios": [self._ratio_row(name, ratio) for name, ratio in self.ratios.items()],
        }

    def _arm_row(self, name: str) -> dict[str, Any]:
        finding, seconds, ledgers = self.findings[name], self.seconds.get(name), self.ledgers.get(name, {})
        return {
            "arm": name,
            "twin_of": next(arm.twin_of for arm in self.comparison.arms if arm.name == name),
            "verified": {"verdict": finding.verdict, "message": finding.message},
            "seconds": seconds,
            "median_seconds": median(seconds) if seconds else None,
            "spread_seconds": spread(seconds) if seconds else None,
            "tokens_per_call": self.tokens.get(name),
            "tokens_per_second": self.tokens[name] / median(seconds) if seconds else None,
            "positions": finding.witness.get("positions"),
            "positions_closed_form": finding.witness.get("positions_closed_form"),
            "peak_memory_bytes": next(iter(ledgers.values()), None),
            "peak_memory_ledger": next(iter(ledgers), None),
            "ledgers": ledgers,
        }

    def _ratio_row(self, name: str, ratio: Ratio) -> dict[str, Any]:
        return {
            "arm": name,
            "against": self.against(name),
            "ratio": ratio.ratio,
            "low": ratio.low,
            "high": ratio.high,
            "verdict": ratio.verdict,
            "smallest_resolvable": ratio.smallest_resolvable,
            "rounds": ratio.rounds,
        }


Clock = Callable[[], float]


def measure(
    comparison: Comparison,
    *,
    only: Collection[str] | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    peak: Callable[[Work], Mapping[str, int]] | None = None,
) -> Measured:
    """Build, verify, then time the arms in turn for about `seconds`, all in all; last their memory, apart from time.

    `only` leaves out arms but never the control, nor the arm that a twin is held against. Whatever an arm raises
    becomes its finding, never an exception. FEWEST_ROUNDS are measured even when they take longer than `seconds`.
    """
    started = clock()
    dice = random.Random(f"{seed} {comparison.label}")
    arms = _chosen(comparison, only)
    works, findings = _built(arms, dice)
    findings |= _verified(comparison, works)
    measured = Measured(comparison, {arm.name: findings[arm.name] for arm in arms})
    ready = [arm.name for arm in arms if findings[arm.name].verdict == "pass"]
    if not ready:
        return measured
    _time(measured, {name: works[name] for name in ready}, dice=dice, until=started + seconds, clock=clock)
    for name, times in measured.seconds.items():
        measured.tokens[name] = works[name].tokens
        if measured.against(name) != name and measured.against(name) in measured.seconds:
            measured.ratios[name] = paired_ratio(times, measured.seconds[measured.against(name)])
        if peak is not None and comparison.weigh:
            _weigh(measured, name, works[name], peak)
    return measured


def _chosen(comparison: Comparison, only: Collection[str] | None) -> list[Arm]:
    if only is None:
        return list(comparison.arms)
    held_against = {arm.twin_of for arm in comparison.arms if arm.name in only}
    wanted = {*only, comparison.control, *held_against}
    return [arm for arm in comparison.arms if arm.name in wanted]


def _built(arms: Sequence[Arm], dice: random.Random) -> tuple[dict[str, Work], dict[str, Finding]]:
    """Build in random order: the arm that is built first is otherwise always the one with the better memory."""
    works: dict[str, Work] = {}
    findings: dict[str, Finding] = {}
    for arm in dice.sample(arms, len(arms)):
        try:
            works[arm.name] = arm.build()
        except Missing as missing:
            findings[arm.name] = Finding("skip", str(missing))
        except Exception as error:
            findings[arm.name] = _broken(error, "while it was built")
    return works, findings


def _verified(comparison: Comparison, works: Mapping[str, Work]) -> dict[str, Finding]:
    """Judge the control first: an arm's answer means nothing beside a control that is wrong."""
    findings: dict[str, Finding] = {}
    control = comparison.control
    for name in sorted(works, key=lambda name: name != control):
        if name != control and control not in works:
            findings[name] = Finding("skip", f"the control, {control}, is missing: nothing to verify against")
        elif name != control and findings[control].verdict != "pass":
            findings[name] = Finding("error", f"the control, {control}, is unverified: nothing to verify against")
        else:
            try:
                findings[name] = comparison.verify(name, works[name])
            except Missing as missing:
                findings[name] = Finding("skip", str(missing))
            except Exception as error:
                findings[name] = _broken(error, "while its answer was verified")
    return findings


def _time(measured: Measured, works: dict[str, Work], *, dice: random.Random, until: float, clock: Clock) -> None:
    """Fill in the block minima: rounds of one block an arm, until the intervals are narrow or the time is spent."""
    calls = _calls_per_block(list(works.values()), clock)
    measured.calls_per_block = calls
    times: dict[str, list[float]] = {name: [] for name in works}
    measured.seconds = times
    longest = 0.0
    for rounds in range(1, LOOKS[-1] + 1):
        begun = clock()
        for name in dice.sample(list(works), len(works)):
            try:
                times[name].append(_block(works[name], calls, clock))
            except Exception as error:
                measured.findings[name] = _broken(error, "while it was timed")
                del works[name], times[name]
        longest = max(longest, clock() - begun)
        if rounds in LOOKS and _narrow(measured):
            measured.stopped = "interval"
            return
        if rounds >= FEWEST_ROUNDS and clock() + longest > until:
            measured.stopped = "budget"
            return
    measured.stopped = "rounds"


def _calls_per_block(works: Sequence[Work], clock: Clock) -> int:
    """Warm up, and choose one count for all arms: the best of six calls is lower than the best of three.

    The answers were computed just before, so every kernel has run once; this is each arm's second and third call.
    """
    estimates = [_block(work, 1, clock) for work in works]
    if max(estimates) > LONG_CALL_SECONDS:
        return 1
    estimates = [min(first, _block(work, 1, clock)) for first, work in zip(estimates, works, strict=True)]
    fastest, slowest = max(min(estimates), 1e-6), max(estimates)
    # Where arms are an order of magnitude apart, the slow one's block must not eat the time of many rounds.
    return max(BLOCK_CALLS, min(math.ceil(BLOCK_SECONDS / fastest), int(LONG_CALL_SECONDS / slowest)))


def _block(work: Work, calls: int, clock: Clock) -> float:
    work.prepare()
    best = math.inf
    for _ in range(calls):
        start = clock()
        work.call()
        best = min(best, clock() - start)
    return best


def _weigh(measured: Measured, name: str, work: Work, peak: Callable[[Work], Mapping[str, int]]) -> None:
    """Fill in the arm's ledgers of memory. One that cannot be had is a note; the times stand without it."""
    ledgers = measured.ledgers.setdefault(name, {})
    try:
        ledgers |= peak(work)
        for ledger, count in work.ledgers.items():
            ledgers[ledger] = count()
    except Exception as error:
        measured.notes.append(f"memory of {name}: {type(error).__name__}: {error}")


def _narrow(measured: Measured) -> bool:
    times = measured.seconds
    pairs = [(name, measured.against(name)) for name in times if measured.against(name) in times]
    ratios = [paired_ratio(times[name], times[other]) for name, other in pairs if name != other]
    return all(ratio.half_width <= TARGET_HALF_WIDTH for ratio in ratios)


def _broken(error: Exception, when: str) -> Finding:
    text = " ".join(str(error).split())[:500]
    return Finding("error", f"{type(error).__name__} {when}: {text}")


class Budget:
    """Shares a run's seconds among the points still to come, by their weights; what one leaves over the rest gets."""

    def __init__(self, seconds: float, weights: Sequence[float], *, clock: Clock = time.perf_counter) -> None:
        self._clock = clock
        self._left = math.fsum(weights)
        self._end = clock() + seconds

    def allot(self, weight: float) -> float:
        """The seconds for the point that begins now."""
        share = weight / max(self._left, weight)
        self._left -= weight
        return max(0.0, self._end - self._clock()) * share
