"""The measurement of a comparison: build the arms, verify, witness, time them in turns, and verify again."""

from __future__ import annotations

import dataclasses
import functools
import random
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Protocol

from harness.bench.comparison import Arm, Comparison
from harness.bench.result import ComparisonResult
from harness.bench.rounds import time_in_rounds
from harness.bench.statistics import median, paired_ratio
from harness.bench.timing import LONG_CALL_SECONDS, Clock, Timer, timer_by_clock
from harness.bench.usage import Usage
from harness.bench.work import ARM_ERRORS, Verification, WitnessedCall, Work
from harness.core.errors import Missing
from harness.core.record_files import Row

WitnessFunction = Callable[[Work], WitnessedCall]


class Ceilings(Protocol):
    """The limits of the machine, measured in the same rounds as the arms."""

    def build(self, works: Collection[Work]) -> Mapping[str, Work]:
        """Return the ceilings to measure beside arms that do `works`, by name."""
        ...

    def fraction(self, work: Work, times: Sequence[float], ceilings: Mapping[str, Sequence[float]]) -> Row | None:
        """Return the fraction of its ceiling that an arm reached, or None if its cost is not known.

        `times` and `ceilings` are the seconds of each round. The keys are name, regime, fraction, low, high, and
        impossible (True if the fraction is above 1).
        """
        ...


def measure(
    comparison: Comparison,
    *,
    only: Collection[str] | None = None,
    seconds: float = 20.0,
    most_seconds: float | None = None,
    effect: float | None = None,
    seed: int = 0,
    clock: Clock = time.perf_counter,
    count: Callable[[], Usage] | None = None,
    timer: Timer | None = None,
    witness: WitnessFunction | None = None,
    ceilings: Ceilings | None = None,
) -> ComparisonResult:
    """Build, verify and witness the arms, time them in turns for about `seconds`, and verify them again.

    An exception that an arm raises becomes its verification and never leaves this function.

    only: the arms to measure; the control and the original of a twin are always added.
    most_seconds: the time until which the rounds go on if the intervals are likely to be narrow by then.
    effect: the difference to decide about, as a fraction; by default 5%, and 10% of long calls.
    seed: decides the order in which arms are built and timed.
    count: what this process has used of the machine so far.
    timer: times one call; reads `clock` if not given.
    witness: profiles one call of each arm, apart from its time.
    ceilings: measured in turns with the arms.
    """
    rng = random.Random(f"{seed} {comparison.label}")
    arms = _selected_arms(comparison, only)
    result = ComparisonResult(comparison, {})
    with result.spending("building"):
        works, verifications = _build(arms, rng)
    with result.spending("verifying"):
        verifications |= _verify_all(comparison, works)
    result.verifications = {arm.name: verifications[arm.name] for arm in arms}
    with result.spending("profiling"):
        for arm in arms:
            if witness is not None and result.verifications[arm.name].verdict == "pass":
                _witness(result, arm, works[arm.name], witness)
    verified = {name: works[name] for name, found in result.verifications.items() if found.verdict == "pass"}
    if not verified:
        return result
    with result.spending("timing"):
        time_in_rounds(
            result,
            verified,
            ceilings.build(list(verified.values())) if ceilings else {},
            rng=rng,
            seconds=seconds,
            most_seconds=max(seconds, most_seconds or 0.0),
            effect=effect,
            clock=clock,
            timer=timer or timer_by_clock(clock),
            count=count,
        )
    with result.spending("verifying"):
        _verify_again(result, verified)
    with result.spending("profiling"):
        if witness is not None:
            _witness_again(result, verified, witness)
    with result.spending("further figures"):
        for name in list(result.seconds):
            _add_figures(result, name, verified[name])
            if ceilings is not None:
                _compare_with_ceiling(result, name, verified[name], ceilings)
    return result


def _selected_arms(comparison: Comparison, only: Collection[str] | None) -> list[Arm]:
    if only is None:
        return list(comparison.arms)
    originals = {arm.twin_of for arm in comparison.arms if arm.name in only}
    selected = {*only, comparison.control, *originals}
    return [arm for arm in comparison.arms if arm.name in selected]


def _build(arms: Sequence[Arm], rng: random.Random) -> tuple[dict[str, Work], dict[str, Verification]]:
    """Build the arms in random order; return their works, and a verification for each that could not be built."""
    works: dict[str, Work] = {}
    verifications: dict[str, Verification] = {}
    for arm in rng.sample(arms, len(arms)):  # in a fixed order the first arm would always get the better memory
        try:
            works[arm.name] = arm.build()
        except Missing as missing:
            verifications[arm.name] = Verification("skip", str(missing))
        except ARM_ERRORS as error:
            verifications[arm.name] = Verification.from_error(error, "while it was built")
    return works, verifications


def _verify_all(comparison: Comparison, works: Mapping[str, Work]) -> dict[str, Verification]:
    """Verify the answer of every arm, the control first: beside a wrong control no other answer means anything."""
    verifications: dict[str, Verification] = {}
    control = comparison.control
    for name in sorted(works, key=lambda name: name != control):
        if name != control and control not in works:
            message = f"the control, {control}, is missing: nothing to verify against"
            verifications[name] = Verification("skip", message)
        elif name != control and verifications[control].verdict != "pass":
            message = f"the control, {control}, is unverified: nothing to verify against"
            verifications[name] = Verification("error", message)
        else:
            verify = functools.partial(comparison.verify, name, works[name])
            verifications[name] = _verdict(verify, "while its answer was verified")
    return verifications


def _verdict(verify: Callable[[], Verification], when: str) -> Verification:
    try:
        return verify()
    except Missing as missing:
        return Verification("skip", str(missing))
    except ARM_ERRORS as error:
        return Verification.from_error(error, when)


def _verify_again(result: ComparisonResult, works: Mapping[str, Work]) -> None:
    """Reject the arms whose answer is wrong: what the last timed call returned, or else what one returns now.

    An arm that drifts, or whose cache went stale, was fast at other work. The last round has an input that no arm has
    seen before, and no arm knows which round is the last.
    """
    comparison = result.comparison
    for name in list(result.seconds):
        sample = result.samples.get(name)
        if sample is None or comparison.verify_sample is None:
            when, verify = "after timing", functools.partial(comparison.verify, name, works[name])
        else:
            when = "while it was timed"
            verify = functools.partial(comparison.verify_sample, name, works[name], sample)
        again = _verdict(verify, "while its answer was verified after timing")
        result.again[name] = f"{when}: {again.message}"
        if again.verdict != "pass":
            result.reject(name, dataclasses.replace(again, message=result.again[name]))


def _witness(result: ComparisonResult, arm: Arm, work: Work, witness: WitnessFunction) -> None:
    """Fill in the arm's ledgers and witness, and reject it if it violates one of its claims.

    A ledger that fails is a note, and the times stand without it. A claim that could not be checked rejects the arm.
    """
    ledgers = result.ledgers.setdefault(arm.name, {})
    try:
        work.prepare()
        seen = witness(work)
        ledgers |= seen.ledgers
        result.witnessed_seconds[arm.name] = seen.seconds
        result.figures.setdefault(arm.name, {})["witness"] = dict(seen.witness)
        if (violation := seen.violated_claim(arm.claims)) is not None:
            result.reject(arm.name, Verification("fail", violation))
            return
        for ledger, count in work.ledgers.items():
            ledgers[ledger] = count()
    except ARM_ERRORS as error:
        result.notes.append(f"memory and witness of {arm.name}: {type(error).__name__}: {error}")
        if arm.claims:
            result.reject(arm.name, Verification.from_error(error, "while it was witnessed"))


def _witness_again(result: ComparisonResult, works: Mapping[str, Work], witness: WitnessFunction) -> None:
    """Witness short calls a second time after timing, and reject the arms that no longer compute.

    An arm that caches its answers computed only when it was witnessed first. A long call is not repeated: to have done
    less than it should, it must have been above its ceiling.
    """
    for name, times in list(result.seconds.items()):
        if median(times) > LONG_CALL_SECONDS:
            continue
        first = result.figures.get(name, {}).get("witness", {})
        try:
            works[name].prepare()
            second = witness(works[name])
        except ARM_ERRORS as error:
            result.notes.append(f"witness of {name} after timing: {type(error).__name__}: {error}")
            continue
        violation = second.violated_claim(result.comparison.arm(name).claims)
        spent = [each["products_seconds"] for each in (first, second.witness) if each.get("products_seconds")]
        first["products_seconds"] = min(spent, default=None)
        if violation is None and first.get("products") and not second.witness.get("products"):
            violation = "no matrix product ran any more: it remembers answers instead of computing them"
        if violation is not None:
            result.reject(name, Verification("fail", f"after timing: {violation}"))


def _add_figures(result: ComparisonResult, name: str, work: Work) -> None:
    """Fill in an arm's tokens, its ratio to its baseline, its cost, and its extras."""
    result.tokens[name] = work.tokens
    baseline = result.comparison.baseline(name)
    if baseline != name and baseline in result.seconds:
        result.ratios[name] = paired_ratio(result.seconds[name], result.seconds[baseline], effect=result.effect)
    figures = result.figures.setdefault(name, {})
    figures |= {"flops": work.flops, "moved_bytes": work.moved_bytes, "operations": work.operations}
    figures["computes"] = work.computes
    try:
        figures["extras"] = dict(work.extras())
    except ARM_ERRORS as error:
        result.notes.append(f"further figures of {name}: {type(error).__name__}: {error}")


def _compare_with_ceiling(result: ComparisonResult, name: str, work: Work, ceilings: Ceilings) -> None:
    """Fill in the fraction of its ceiling that an arm reached, and reject the arm if that is above 1."""
    measured = {ceiling: figures["seconds"] for ceiling, figures in result.ceilings.items()}
    found = ceilings.fraction(work, result.seconds[name], measured)
    result.figures[name]["ceiling"] = found
    if found is not None and found.pop("impossible"):
        message = (
            f"{found['fraction']:.0%} of the machine's ceiling ({found['name']}), measured in the same rounds: more "
            "than 100% is impossible, so the measurement or the arm's closed form is wrong"
        )
        result.reject(name, Verification("fail", message))
