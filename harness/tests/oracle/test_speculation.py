"""The closed forms of speculative decoding agree with its rounds, and are those of the paper."""

import random

import pytest

from harness.oracle.speculation import greedy_rounds, speed_up, tokens_a_call


@pytest.mark.parametrize(("acceptance", "lookahead"), [(0.8, 4), (0.3, 2), (0.95, 8), (0.0, 3)])
def test_simulated_rounds_have_the_closed_forms_tokens_a_call(acceptance, lookahead):
    rng = random.Random(0)
    agrees = [rng.random() < acceptance for _ in range(200_000)]
    rounds = greedy_rounds(agrees, lookahead)
    assert len(agrees) / rounds.target_calls == pytest.approx(tokens_a_call(acceptance, lookahead), rel=0.01)
    assert rounds.acceptance == pytest.approx(acceptance, abs=0.01)


@pytest.mark.parametrize(
    ("acceptance", "lookahead", "times"),
    [(0.6, 2, 1.96), (0.7, 3, 2.53), (0.8, 2, 2.44), (0.8, 5, 3.69), (0.9, 2, 2.71), (0.9, 10, 6.86)],
)
def test_speed_ups_without_a_cost_are_those_of_the_paper(acceptance, lookahead, times):
    """Leviathan et al., 2023, table 1: c = 0."""
    assert round(speed_up(acceptance, lookahead, 0.0), 2) == times


def test_a_draft_that_is_always_accepted_gives_one_token_more_than_drafts():
    assert tokens_a_call(1.0, 5) == 6.0


def test_a_draft_that_is_never_accepted_only_costs():
    assert speed_up(0.0, 4, 0.1) == pytest.approx(1 / 1.4)
    assert speed_up(0.9, 1, 0.5, 2.0) < 1.0 < speed_up(0.9, 1, 0.5)


def test_rounds_by_hand():
    # One accepted and a correction; two accepted and the target's own; one, because two could not be used.
    rounds = greedy_rounds([True, False, True, True, False, True, False], 2)
    assert rounds.target_calls == 3
    assert rounds.judged == (3, 2)
    assert rounds.accepted == (3, 1)
    assert rounds.tokens_before_last == 5
    assert rounds.tokens_a_call == 2.5


def test_the_last_token_is_never_drafted_in_vain():
    assert greedy_rounds([True], 4).judged == (0, 0, 0, 0)
