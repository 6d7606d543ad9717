"""Arms that do the same work, measured in turn on one machine; no time is kept for an arm whose answer is wrong."""

from __future__ import annotations

import dataclasses
import functools
import math
import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from harness.bench.statistics import (
    FEWEST_ROUNDS,
    FEWEST_WARM,
    Ratio,
    busy_rounds,
    median,
    paired_ratio,
    spread,
    warmed_up,
)
from harness.bench.timing import (
    LONG_CALL_SECONDS,
    Block,
    Clock,
    Timer,
    by_clock,
    calls_per_block,
    rate,
    warm_up,
    yardstick,
)
from harness.core.errors import HarnessError, Missing
from harness.core.record_files import place

# Looking seldom, and only at the interval's width, keeps the false alarms down; stopping on significance does not.
LOOKS = (12, 24, 48, 96)
TARGET_HALF_WIDTH = 0.01
# Short rounds are made eight at least, of which the trimmed mean leaves out one at either end; of four it leaves none.
SHORT_ROUND_SECONDS, FEWEST_SHORT_ROUNDS = 2.0, 8
# A long round in which the machine was plainly busy is made once more: of four, none can be left out.
MOST_MADE_AGAIN = 2
# Under the profiler a call takes up to some four times as long: one that takes longer than this is long by itself.
LONG_WATCHED_SECONDS = 4 * LONG_CALL_SECONDS
AGAIN = "-again"  # ends the name of a twin
# What an arm may raise without ending the run: a subject that exits is no reason to lose the others.
FAILURES = (Exception, SystemExit)

Row = dict[str, Any]


@dataclass(frozen=True)
class Verification:
    """Whether an arm's answer may be believed, in one line. `witness` is what was counted on the way.

    `error` is the answer's relative error against the truth, where there is a truth to be near to, and `allowed` what
    rounding allows.
    """

    verdict: Literal["pass", "fail", "error", "skip"]
    message: str
    witness: Mapping[str, int] = field(default_factory=dict)
    error: float | None = None
    allowed: float | None = None


@dataclass(frozen=True)
class Witnessed:
    """What was seen of one call, apart from its time: the ledgers of its memory, and what ran.

    `refuse` says in a sentence why a claim of the arm's (`{"attention": "flash"}`) does not hold, or None. `seconds` is
    how long the whole call took while it was watched; 0 where only a part of one was.
    """

    ledgers: Mapping[str, int]
    witness: Mapping[str, Any] = field(default_factory=dict)
    refuse: Callable[[Mapping[str, Any]], str | None] = lambda claims: None
    seconds: float = 0.0


@dataclass(frozen=True)
class Work:
    """An arm, built: `call` is timed, `prepare` comes before each block and is not, `answer` is what gets verified.

    `tokens` is how many tokens one call answers for. `ledgers` are further accounts of the bytes that one call needs
    (a closed form, a child process), beside the allocator's own. `flops`, `moved_bytes` and `operations` are what one
    call costs by closed form, `computes` the type of its products: what it is held against the ceilings by. `seen` is
    a shorter call for the witness, where a whole one has more operations than a trace should hold. `extras` gives
    further figures after the timing, each named with its unit. `weigh` is false where no allocator sees the memory,
    as of files that are mapped.
    """

    call: Callable[[], object]
    answer: Callable[[], Any]
    tokens: int
    prepare: Callable[[], object] = lambda: None
    ledgers: Mapping[str, Callable[[], int]] = field(default_factory=dict)
    flops: float | None = None
    moved_bytes: float | None = None
    operations: float | None = None
    computes: str = "float32"
    seen: Callable[[], object] | None = None
    extras: Callable[[], Mapping[str, float]] = dict
    weigh: bool = True


@dataclass(frozen=True)
class Arm:
    """One way to do the work. A twin is an arm built once more: its true ratio to the arm it is `twin_of` is 1.

    `claims` is what its name promises: an arm of which something else is seen is refused. `peer` says that another
    implementation than the subject does the work.
    """

    name: str
    build: Callable[[], Work]
    twin_of: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = False


def with_twin(builders: Mapping[str, Callable[[int], Work]], *, of: str) -> tuple[Arm, ...]:
    """An arm for each builder, and a twin of the arm `of`. A builder gets the copy's number: 0, or 1 for the twin."""
    named = (Arm(name, functools.partial(build, 0)) for name, build in builders.items())
    return (*named, Arm(of + AGAIN, functools.partial(builders[of], 1), twin_of=of))


@dataclass(frozen=True)
class Comparison:
    """Arms that do the same work at one point of an axis, the control that they are held against, and the judge.

    `verify` gets an arm's name and its work, the control's first, and says whether the answer is right.
    """

    name: str
    title: str
    metric: str
    control: str
    arms: tuple[Arm, ...]
    verify: Callable[[str, Work], Verification]
    axis: str | None = None
    point: int | None = None

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        wanted = {self.control} | {arm.twin_of for arm in self.arms if arm.twin_of}
        if len(set(names)) < len(names) or not wanted <= set(names):
            raise HarnessError(f"comparison {self.name}: arms {names} must be distinct and hold {sorted(wanted)}")

    @property
    def label(self) -> str:
        """`attention forward, tokens=512`."""
        return place(self.name, self.metric, self.axis, self.point)


@dataclass
class Measured:
    """What came of a comparison. An arm is in `seconds` only when its finding is a pass.

    `figures` is what else is known of an arm, under the names that its row has in the record.
    """

    comparison: Comparison
    findings: dict[str, Verification]
    seconds: dict[str, list[float]] = field(default_factory=dict)
    tokens: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, Ratio] = field(default_factory=dict)
    ledgers: dict[str, dict[str, int]] = field(default_factory=dict)
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    ceilings: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    calls_per_block: int = 0
    timing_seconds: float = 0.0
    stopped: str = "nothing to measure"
    watched_seconds: dict[str, float] = field(default_factory=dict)

    def against(self, name: str) -> str:
        """The arm that `name` is held against."""
        arm = next(arm for arm in self.comparison.arms if arm.name == name)
        return arm.twin_of or self.comparison.control

    def without(self, name: str, finding: Verification) -> None:
        """Take an arm's time away: what was found of it later says that it is not what it is called."""
        self.findings[name] = finding
        for figures in (self.seconds, self.tokens):
            figures.pop(name, None)
        self.ratios = {arm: ratio for arm, ratio in self.ratios.items() if name not in (arm, self.against(arm))}

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
            "timing_seconds": self.timing_seconds,
            "notes": self.notes,
            "arms": [self._arm_row(name) for name in self.findings],
            "ceilings": [{"name": name, **found} for name, found in self.ceilings.items()],
            "ratios": [self._ratio_row(name, ratio) for name, ratio in self.ratios.items()],
        }

    def _arm_row(self, name: str) -> dict[str, Any]:
        finding, seconds, ledgers = self.findings[name], self.seconds.get(name), self.ledgers.get(name, {})
        arm = next(arm for arm in self.comparison.arms if arm.name == name)
        return {
            "arm": name,
            "twin_of": arm.twin_of,
            "peer": arm.peer,
            "verified": {"verdict": finding.verdict, "message": finding.message},
            "error": finding.error,
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
            **self.figures.get(name, {}),
        }

    def _ratio_row(self, name: str, ratio: Ratio) -> dict[str, Any]:
        return {"arm": name, "against": self.against(name), **dataclasses.asdict(ratio)}


class Ceilings(Protocol):
    """What the machine can do while the arms run: yardsticks measured in the same rounds."""

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """The yardsticks for arms that do `works`, by name."""
        ...

    def under(self, work: Work, times: Sequence[float], yardsticks: Mapping[str, Sequence[float]]) -> Row | None:
        """Where an arm stands: name, regime, fraction, low, high, and `impossible` where that is above 1."""
        ...


def measure(
    comparison: Comparison,
    *,
    only: Collection[str] | None = None,
    seconds: float = 20.0,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    busy: Clock | None = None,
    timed: Timer | None = None,
    watch: Callable[[Work], Witnessed] | None = None,
    ceilings: Ceilings | None = None,
) -> Measured:
    """Build, verify, watch, then time the arms in turn for about `seconds`, and verify them again.

    `only` leaves out arms but never the control, nor the arm that a twin is held against. Whatever an arm raises
    becomes its finding, never an exception. FEWEST_ROUNDS are measured even when they take longer than `seconds`, those
    in which the machine was plainly busy once more (MOST_MADE_AGAIN at most), and FEWEST_SHORT_ROUNDS of short ones.
    `timed` is what times a call (the clock, if not given); `watch` sees one call of each arm, apart from its time;
    `busy` is the process's time on all cores; `ceilings` take their turns with the arms.
    """
    rng = random.Random(f"{seed} {comparison.label}")
    arms = _chosen(comparison, only)
    works, findings = _built(arms, rng)
    findings |= _verified(comparison, works)
    measured = Measured(comparison, {arm.name: findings[arm.name] for arm in arms})
    for arm in arms:
        if watch is not None and measured.findings[arm.name].verdict == "pass":
            _watch(measured, arm, works[arm.name], watch)
    ready = {name: works[name] for name in measured.findings if measured.findings[name].verdict == "pass"}
    if not ready:
        return measured
    yardsticks = ceilings.build(list(ready.values())) if ceilings else {}
    timed = timed or by_clock(clock)
    _time(measured, ready, yardsticks, rng=rng, seconds=seconds, clock=clock, timed=timed, busy=busy)
    _verify_again(measured, ready)
    if watch is not None:
        _watch_again(measured, {arm.name: arm for arm in arms}, ready, watch)
    for name, times in list(measured.seconds.items()):
        _conclude(measured, name, ready[name], times)
        if ceilings is not None:
            _hold_under(measured, name, ready[name], ceilings)
    return measured


def _chosen(comparison: Comparison, only: Collection[str] | None) -> list[Arm]:
    if only is None:
        return list(comparison.arms)
    held_against = {arm.twin_of for arm in comparison.arms if arm.name in only}
    wanted = {*only, comparison.control, *held_against}
    return [arm for arm in comparison.arms if arm.name in wanted]


def _built(arms: Sequence[Arm], rng: random.Random) -> tuple[dict[str, Work], dict[str, Verification]]:
    """Build in random order: the arm that is built first is otherwise always the one with the better memory."""
    works: dict[str, Work] = {}
    findings: dict[str, Verification] = {}
    for arm in rng.sample(arms, len(arms)):
        try:
            works[arm.name] = arm.build()
        except Missing as missing:
            findings[arm.name] = Verification("skip", str(missing))
        except FAILURES as error:
            findings[arm.name] = _broken(error, "while it was built")
    return works, findings


def _verified(comparison: Comparison, works: Mapping[str, Work]) -> dict[str, Verification]:
    """Verifier the control first: an arm's answer means nothing beside a control that is wrong."""
    findings: dict[str, Verification] = {}
    control = comparison.control
    for name in sorted(works, key=lambda name: name != control):
        if name != control and control not in works:
            findings[name] = Verification("skip", f"the control, {control}, is missing: nothing to verify against")
        elif name != control and findings[control].verdict != "pass":
            findings[name] = Verification("error", f"the control, {control}, is unverified: nothing to verify against")
        else:
            findings[name] = _verify(comparison, name, works[name], "while its answer was verified")
    return findings


def _verify(comparison: Comparison, name: str, work: Work, when: str) -> Verification:
    try:
        return comparison.verify(name, work)
    except Missing as missing:
        return Verification("skip", str(missing))
    except FAILURES as error:
        return _broken(error, when)


def _verify_again(measured: Measured, works: Mapping[str, Work]) -> None:
    """The same answer after timing: an arm that drifts, or whose cache went stale, was fast at something else."""
    for name in list(measured.seconds):
        again = _verify(measured.comparison, name, works[name], "while its answer was verified after timing")
        if again.verdict != "pass":
            measured.without(name, dataclasses.replace(again, message=f"after timing: {again.message}"))


def _watch_again(
    measured: Measured, arms: Mapping[str, Arm], works: Mapping[str, Work], watch: Callable[[Work], Witnessed]
) -> None:
    """A short call once more after timing: one that remembers its answers computed when it was first watched only.

    A long call is left alone: to have done less than it should, it must have been above its ceiling.
    """
    for name, times in list(measured.seconds.items()):
        if median(times) > LONG_CALL_SECONDS:
            continue
        before = measured.figures.get(name, {}).get("witness", {})
        try:
            works[name].prepare()
            seen = watch(works[name])
        except FAILURES as error:
            measured.notes.append(f"witness of {name} after timing: {type(error).__name__}: {error}")
            continue
        refused = seen.refuse(arms[name].claims)
        spent = [each["products_seconds"] for each in (before, seen.witness) if each.get("products_seconds")]
        before["products_seconds"] = min(spent, default=None)
        if refused is None and before.get("products") and not seen.witness.get("products"):
            refused = "no matrix product ran any more: it remembers answers instead of computing them"
        if refused is not None:
            measured.without(name, Verification("fail", f"after timing: {refused}"))


def _watch(measured: Measured, arm: Arm, work: Work, watch: Callable[[Work], Witnessed]) -> None:
    """Fill in the arm's ledgers and witness, and refuse it where it is not what its name says.

    A ledger that cannot be had is a note; the times stand without it. A claim that cannot be looked at is not kept.
    """
    ledgers = measured.ledgers.setdefault(arm.name, {})
    try:
        work.prepare()
        seen = watch(work)
        ledgers |= seen.ledgers
        measured.watched_seconds[arm.name] = seen.seconds
        measured.figures.setdefault(arm.name, {})["witness"] = dict(seen.witness)
        if (refused := seen.refuse(arm.claims)) is not None:
            measured.without(arm.name, Verification("fail", refused))
            return
        for ledger, count in work.ledgers.items():
            ledgers[ledger] = count()
    except FAILURES as error:
        measured.notes.append(f"memory and witness of {arm.name}: {type(error).__name__}: {error}")
        if arm.claims:
            measured.without(arm.name, _broken(error, "while it was watched"))


def _conclude(measured: Measured, name: str, work: Work, times: Sequence[float]) -> None:
    """What an arm's times come to: tokens, the ratio, and its further figures."""
    measured.tokens[name] = work.tokens
    if measured.against(name) != name and measured.against(name) in measured.seconds:
        measured.ratios[name] = paired_ratio(times, measured.seconds[measured.against(name)])
    figures = measured.figures.setdefault(name, {})
    figures |= {"flops": work.flops, "moved_bytes": work.moved_bytes, "operations": work.operations}
    figures["computes"] = work.computes
    try:
        figures["extras"] = dict(work.extras())
    except FAILURES as error:
        measured.notes.append(f"further figures of {name}: {type(error).__name__}: {error}")


def _hold_under(measured: Measured, name: str, work: Work, ceilings: Ceilings) -> None:
    """Place an arm under the ceilings; one above them loses its time."""
    yardsticks = {other: found["seconds"] for other, found in measured.ceilings.items()}
    found = ceilings.under(work, measured.seconds[name], yardsticks)
    measured.figures[name]["ceiling"] = found
    if found is not None and found.pop("impossible"):
        told = (
            f"{found['fraction']:.0%} of the machine's ceiling ({found['name']}), measured in the same rounds: more "
            "than all is impossible, so the measurement or the arm's closed form is wrong"
        )
        measured.without(name, Verification("fail", told))


def _time(
    measured: Measured,
    works: dict[str, Work],
    ceilings: Mapping[str, Work],
    *,
    rng: random.Random,
    seconds: float,
    clock: Clock,
    timed: Timer,
    busy: Clock | None,
) -> None:
    """Fill in the block minima: rounds of one block an arm, until the intervals are narrow or the time is spent."""
    started = clock()
    warm = _warmed(measured, works, clock, timed)
    if not warm:
        return
    calls = measured.calls_per_block = calls_per_block([min(series, default=math.inf) for series in warm.values()])
    blocks = {name: Block(work, calls, clock, timed, busy) for name, work in works.items()}
    yardsticks = {name: yardstick(work, calls, clock, timed) for name, work in ceilings.items()}
    measured.seconds = {name: block.best for name, block in blocks.items()}
    took: list[float] = []
    for rounds in range(1, LOOKS[-1] + 1):
        begun = clock()
        _round(measured, blocks, yardsticks, rng)
        took.append(clock() - begun)
        if rounds in LOOKS and _narrow(measured):
            measured.stopped = "interval"
            break
        short = median(took) <= SHORT_ROUND_SECONDS
        fewest = FEWEST_SHORT_ROUNDS if short else FEWEST_ROUNDS + _made_again(measured)
        if rounds >= fewest and clock() + max(took) > started + seconds:
            measured.stopped = "budget"
            break
    else:
        measured.stopped = "rounds"
    measured.timing_seconds = clock() - started
    for name, block in yardsticks.items():
        measured.ceilings[name] = {"seconds": block.best, **rate(ceilings[name], block.best)}
    for name, block in blocks.items():
        _settled(measured, name, warm[name], block)


def _warmed(measured: Measured, works: dict[str, Work], clock: Clock, timed: Timer) -> dict[str, list[float]]:
    """The times of each arm's calls until they settled; an arm that breaks is taken out of `works`.

    Where every arm is long there are none: each has been called to be verified and to be watched. All or none, because
    an arm that was called once more than its control would begin warmer.
    """
    watched = {name: measured.watched_seconds.get(name, 0.0) for name in works}
    if min(watched.values()) > LONG_WATCHED_SECONDS:
        return {name: [] for name in works}
    warm: dict[str, list[float]] = {}
    for name, work in list(works.items()):
        try:
            warm[name] = warm_up(work, clock, timed, watched_seconds=watched[name])
        except FAILURES as error:
            del works[name]
            measured.without(name, _broken(error, "while it was warmed up"))
    return warm


def _round(measured: Measured, blocks: dict[str, Block], yardsticks: dict[str, Block], rng: random.Random) -> None:
    """One block of everything, in random order."""
    every = {**blocks, **{f"ceiling {name}": block for name, block in yardsticks.items()}}
    for name in rng.sample(list(every), len(every)):
        try:
            every[name].run()
        except FAILURES as error:
            if name not in blocks:
                raise
            del blocks[name]
            measured.without(name, _broken(error, "while it was timed"))


def _settled(measured: Measured, name: str, warming: Sequence[float], block: Block) -> None:
    """Note whether the times had settled when they began to count, and how many cores were at work.

    Of a few long calls nobody can tell: None. Nor of block minima, which move with the machine.
    """
    figures = measured.figures.setdefault(name, {})
    reached = warmed_up(warming) is not None if len(warming) >= FEWEST_WARM else None
    figures["warm"] = {"reached": reached, "calls": len(warming)}
    if reached is False:
        measured.notes.append(f"{name} was not warm: its times still fell after {len(warming)} calls of warming up")
    if block.cores is not None:
        figures.setdefault("witness", {})["busy_threads"] = round(block.cores, 2)


def _made_again(measured: Measured) -> int:
    """How many rounds are made again: those in which the machine was plainly busy, MOST_MADE_AGAIN at most."""
    return min(MOST_MADE_AGAIN, max((busy_rounds(pairs) for pairs in _paired(measured)), default=0))


def _paired(measured: Measured) -> Iterator[list[tuple[float, float]]]:
    """The rounds of each arm that is held against another, beside the other's."""
    times = measured.seconds
    for name in times:
        if (other := measured.against(name)) != name and other in times:
            yield list(zip(times[name], times[other], strict=True))


def _narrow(measured: Measured) -> bool:
    ratios = [paired_ratio(*zip(*rounds, strict=True)) for rounds in _paired(measured)]
    # Of many runs the luckily narrow ones would stop first, and cover the truth less often: they are asked for more.
    return all(ratio.half_width <= TARGET_HALF_WIDTH * min(1, math.sqrt(ratio.rounds / LOOKS[2])) for ratio in ratios)


def _broken(error: BaseException, when: str) -> Verification:
    text = " ".join(str(error).split())[:500]
    return Verification("error", f"{type(error).__name__} {when}: {text}")


class Budget:
    """Shares a run's seconds of timing among the points still to come, by their weights.

    What one leaves over the rest gets, and what one takes too much the rest goes without.
    """

    def __init__(self, seconds: float, weights: Sequence[float]) -> None:
        self._left = seconds
        self._weights = math.fsum(weights)

    def allot(self, weight: float) -> float:
        """The seconds for the point that begins now."""
        share = max(0.0, self._left) * weight / max(self._weights, weight)
        self._weights -= weight
        return share

    def spend(self, seconds: float) -> None:
        """What its timing has taken."""
        self._left -= seconds
