"""Deviations that are combined: each is named, and nothing else is."""

import os

import pytest

from harness.diagnosis import diagnose
from harness.subjects.adapters import adapt
from harness.tests.diagnosis.combined_deviations import COMBINATIONS, DEVIATIONS, GPT

WHOLE = os.environ.get("GPT_HARNESS_FAULTS") == "all"
ALWAYS = 5  # combinations that every run of the tests diagnoses, some seconds each
NAMED = 0.85  # of all combinations, in which every deviation is named; nothing false may be said of any


def judged(folder, names):
    """Return the deviations that are not named, and the findings with an id that is none of theirs."""
    text = GPT
    for name in names:
        text = DEVIATIONS[name].apply(text)
    file = folder / f"{'_'.join(names).replace(' ', '_').replace('-', '_')}.py"
    file.write_text(text)
    diagnosis = diagnose(adapt(f"{file}:GPT"))
    assert diagnosis.trouble == ""
    right = {fault for name in names for fault in DEVIATIONS[name].faults}
    named = {fault for finding in diagnosis.findings for fault in (finding.fault, *finding.alike)}
    missed = [name for name in names if DEVIATIONS[name].faults and not DEVIATIONS[name].faults & named]
    false = [f for f in diagnosis.findings if f.fault and not right & {f.fault, *f.alike}]
    return missed, false


@pytest.mark.parametrize("names", COMBINATIONS[:ALWAYS], ids=" + ".join)
def test_what_is_combined_is_named(tmp_path, names):
    assert judged(tmp_path, names) == ([], [])


@pytest.mark.skipif(not WHOLE, reason="some minutes: GPT_HARNESS_FAULTS=all runs it")
def test_of_most_combinations_everything_is_named_and_of_none_something_false(tmp_path):
    results = {" + ".join(names): judged(tmp_path, names) for names in COMBINATIONS}
    false = {names: found for names, (_, found) in results.items() if found}
    assert not false
    missed = {names: left for names, (left, _) in results.items() if left}
    assert len(missed) <= (1 - NAMED) * len(results), missed
