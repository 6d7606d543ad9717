"""Words for a sweep that fails: the condition that makes the difference, found by changing one thing at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.measures.conditions.condition import FACTORS, Condition
from harness.measures.conditions.separation import separate
from harness.measures.conditions.sweep import Outcome, Sweep

EXAMPLES = 2  # failures that are made plainer, one thing at a time
REPEATED = 8  # failures that are repeated in a new model where some of them follow from the calls before
PLAIN = Condition()


def explain(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[str]:
    """Return what is wrong, in sentences: under which condition, in which rows, at which positions.

    A failure that a new model does not show follows from the calls before it. The others are repeated with one thing
    after the other made plain, and with each value of what is left, so that the sentence does not rest on chance. Of a
    subject that is wrong under the plain condition, too, parity says what is wrong, and nothing is repeated.
    """
    failed = sorted((each for each in outcomes if not each.is_right), key=lambda each: _differs_in(each.condition))
    if len(failed) == len(outcomes) or _differs_in(failed[0].condition) == 0:
        return _said(outcomes, failed)
    lasting = _lasting(sweep, failed)
    if not lasting:
        return _after_what(sweep, outcomes, failed[0])
    seen = [each for each in outcomes if each.is_right or each in lasting]
    for example in lasting[:EXAMPLES]:
        seen += _around(sweep, example.condition)
    return _said(seen, [each for each in seen if not each.is_right])


def _said(seen: Sequence[Outcome], failed: Sequence[Outcome]) -> list[str]:
    """Return the sentences about what separates the failed conditions from the others that were seen."""
    wrong = list(dict.fromkeys(each.condition for each in failed))
    every = list(dict.fromkeys(each.condition for each in seen))
    plain = min(wrong, key=_differs_in)
    said = separate(every, wrong)
    return (said or [f"wrong for {len(wrong)} of {len(every)} conditions, the plainest of them: {plain}"]) + _where(
        failed
    )


def _lasting(sweep: Sweep, failed: Sequence[Outcome]) -> list[Outcome]:
    """Return failures that a new model shows as well. If it shows the plainest, it is taken to show all."""
    first = [each for each in failed[:EXAMPLES] if not _in_a_new_model(sweep, each.condition).is_right]
    if len(first) == len(failed[:EXAMPLES]):
        return list(failed)
    others = failed[EXAMPLES : EXAMPLES + REPEATED]
    return first + [each for each in others if not _in_a_new_model(sweep, each.condition).is_right]


def _differs_in(condition: Condition) -> int:
    return sum(getattr(condition, name) != getattr(PLAIN, name) for name in FACTORS)


def _in_a_new_model(sweep: Sweep, condition: Condition) -> Outcome:
    sweep.renew()
    return sweep.outcome(condition)


def _around(sweep: Sweep, condition: Condition) -> list[Outcome]:
    """Return outcomes of conditions near a wrong one: made plainer, then with each value of what must not be plain."""
    found = []
    sweep.renew()

    def try_with(changed: Mapping[str, Any]) -> Outcome | None:
        other = replace(condition, **changed)
        rows, longest = sweep.expected.ids.shape
        if other == condition or other.length > longest or other.rows > rows:
            return None
        if condition.after != PLAIN.after:  # what an event leaves behind must not be taken for the next one's
            sweep.renew()
        found.append(sweep.outcome(other))
        return found[-1]

    for name in sorted(FACTORS, key=lambda name: name != "after"):
        outcome = try_with({name: getattr(PLAIN, name)})
        condition = condition if outcome is None or outcome.is_right else outcome.condition
    for name in [name for name in FACTORS if getattr(condition, name) != getattr(PLAIN, name)]:
        for value in FACTORS[name]:
            try_with({name: value})
    return found


def _after_what(sweep: Sweep, outcomes: Sequence[Outcome], wrong: Outcome) -> list[str]:
    """Return the call that must come before the wrong one, which a new model answers right."""
    said = f"right in a new model, wrong after other calls: {wrong.condition}"
    for before in outcomes:
        if before is wrong:
            break
        _in_a_new_model(sweep, before.condition)
        if not sweep.outcome(wrong.condition).is_right:
            return [f"{said}; as after {before.condition}"]
    return [said]


def _where(wrong: Sequence[Outcome]) -> list[str]:
    """Return sentences about the rows and the positions that differ, where they are the same in all failures."""
    said = []
    many = [each for each in wrong if each.condition.rows > 1 and each.rows_wrong]
    if many and all(each.rows_wrong == frozenset(range(1, each.condition.rows)) for each in many):
        said.append("row 0 of the batch agrees, row 1 and later differ")
    elif many and all(0 not in each.rows_wrong for each in many):
        said.append("row 0 of the batch agrees, others differ")
    starts = {min(each.positions_wrong) for each in wrong if each.positions_wrong}
    if starts and all(each.positions_wrong == {each.condition.length - 1} for each in wrong if each.positions_wrong):
        said.append("only the last position differs")
    elif len(starts) == 1 and (start := starts.pop()) > 0:
        said.append(f"positions before {start} agree")
    return said
