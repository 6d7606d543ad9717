"""The law of speculation is the target's own; each known mistake has another, and each pair can be told apart."""

import itertools

import pytest

from harness.measures.speculation.distribution import DIFFERS, _Case
from harness.measures.speculation.laws import RIGHT, VARIANTS, of_first, total_variation
from harness.subjects.adapters import adapt

CASES = {
    "near": ("near", 2, 4, 1.5, 2),
    "far": ("far", 2, 3, 0.5, 2),
    "blind": ("blind", 2, 2),
    "rejected": ("rejected", 2, 3, 1.0, 2),
}


@pytest.fixture(scope="module")
def asked():
    subject = adapt("gpt:GPT")
    return {name: _Case(subject, "debug", *settings).asked for name, settings in CASES.items()}


@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_done_right_the_tokens_have_the_targets_distribution(asked, case, limited):
    law, expected = asked[case].law(RIGHT, limited=limited), asked[case].target_law()
    assert abs(sum(expected.values()) - 1) < 1e-12
    assert total_variation(law, expected) < 1e-12


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.id)
def test_each_mistake_shows_in_a_case(asked, variant):
    expected = {name: each.target_law() for name, each in asked.items()}
    worst = max(
        total_variation(each.law(variant, limited=limited), expected[name])
        for name, each in asked.items()
        for limited in (True, False)
    )
    assert worst > 1e-3 > DIFFERS


def test_no_two_mistakes_are_the_same_program(asked):
    for a, b in itertools.combinations(VARIANTS, 2):
        apart = max(total_variation(each.law(a, limited=True), each.law(b, limited=True)) for each in asked.values())
        assert apart > 1e-6, f"{a.id} and {b.id}"


def test_total_variation_and_first_tokens():
    law = {(0, 0): 0.5, (0, 1): 0.25, (1, 1): 0.25}
    assert of_first(law, 1) == {(0,): 0.75, (1,): 0.25}
    assert total_variation(law, law) == 0.0
    assert total_variation(law, {(2, 2): 1.0}) == 1.0
