"""Draws that are wrong in ways that the enumeration of a model's drafts cannot see."""

import pytest

from harness.diagnosis import diagnose
from harness.faults.catalogue import read_catalogue
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

DRAWS = "speculation::draws-are-independent,size=debug,draft=far,answers=20,new_tokens=10"
LOOKUP = "speculation::distribution,draft=prompt-lookup,new_tokens=3"


def record_of(shipped, tmp_path, fault, check):
    (chosen,) = read_catalogue().chosen([fault])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    subject = adapt(f"{file}:GPT")
    record = run(shipped[check], subject)
    return record, [finding.fault for finding in diagnose(subject, [record]).findings]


@pytest.mark.parametrize(
    ("fault", "places"),
    [("spec-acceptance-not-random", ("rejections",)), ("spec-reseeded-each-round", ("rounds",))],
)
def test_numbers_that_are_the_same_in_every_round_fail_where_they_serve(shipped, tmp_path, fault, places):
    """One number for all acceptances passed: to follow every outcome of a draw, a draw must be one.

    Where every draft is accepted, the number does not matter.
    """
    record, named = record_of(shipped, tmp_path, fault, DRAWS)
    assert record.verdict == "fail"
    assert set(places) <= set(record.where)
    assert named == [fault]


def test_drafts_of_the_prompt_are_certain(shipped, tmp_path):
    """Prompt lookup was judged by greedy texts alone, which a wrong probability of its drafts does not change."""
    record, named = record_of(shipped, tmp_path, "spec-lookup-not-certain", LOOKUP)
    assert record.verdict == "fail"
    assert named == ["spec-lookup-not-certain"]
    right = run(shipped[LOOKUP], adapt("gpt:GPT"))
    assert right.verdict == "pass", right.message
