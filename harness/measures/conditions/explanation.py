"""Words for a sweep that fails: the condition that makes the difference, found by changing one thing at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.measures.conditions.condition import FACTORS, Condition
from harness.measures.conditions.separation import separate
from harness.measures.conditions.sweep import Outcome, Sweep

EXAMPLES = 3  # failures that are made plainer, one thing at a time
PLAIN = Condition()


def explain(sweep: Sweep, outcomes: Sequence[Outcome]) -> list[str]:
    """Return what is wrong, in sentences: under which condition, in which rows, at which positions.

    A failure that a new model does not show follows from the calls before it. The others are repeated with one thing
    after the other made plain, and with each value of what is left, so that the sentence does not rest on chance.
    """
    failed = [each for each in outcomes if not each.is_right]
    if len(failed) == len(outcomes):
        return separate([each.condition for each in outcomes], [each.condition for each in failed])
    lasting = [each for each in failed if not _in_a_new_model(sweep, each.condition).is_right]
    if not lasting:
        return _after_what(sweep, outcomes, failed[0])
    seen = [each for each in outcomes if each.is_right or each in lasting]
    plainest = sorted(lasting, key=lambda each: _differs_in(each.condition))[:EXAMPLES]
    for example in plainest:
        seen += _around(sweep, example.condition)
    wrong = list(dict.fromkeys(each.condition for each in seen if not each.is_right))
    said = separate(list(dict.fromkeys(each.condition for each in seen)), wrong)
    if not said:
        plain = min(wrong, key=_differs_in)
        said = [f"wrong for {len(failed)} of {len(outcomes)} conditions, the plainest of them: {plain}"]
    return said + _where([each for each in seen if not each.is_right])


def _differs_in(condition: Condition) -> int:
    return sum(getattr(condition, name) != getattr(PLAIN, name) for name in FACTORS)


def _in_a_new_model(sweep: Sweep, condition: Condition) -> Outcome:
    sweep.renew()
    return sweep.outcome(condition)


def _around(sweep: Sweep, condition: Condition) -> list[Outcome]:
    """Return outcomes of conditions near a wrong one: made plainer, then with each value of what must not be plain."""
    found = []
    for name in FACTORS:
        plainer = replace(condition, **{name: getattr(PLAIN, name)})
        if plainer != condition and plainer.length <= sweep.expected.ids.shape[1]:
            outcome = _in_a_new_model(sweep, plainer)
            found.append(outcome)
            condition = condition if outcome.is_right else plainer
    needed = [name for name in FACTORS if getattr(condition, name) != getattr(PLAIN, name)] or ["length", "rows"]
    rows, longest = sweep.expected.ids.shape
    for name in needed:
        for value in FACTORS[name]:
            changed: dict[str, Any] = {name: value}
            other = replace(condition, **changed)
            if other.length <= longest and other.rows <= rows:
                found.append(_in_a_new_model(sweep, other))
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
