"""The learning rate at every step, against its closed form."""

import math

import pytest

from gpt.tests.training.small_trainer import config
from gpt.training.schedule import learning_rate


def rates(**changes) -> list[float]:
    run = config(**{"lr": 1.0, "min_lr": 0.1, "warmup": 20, "steps": 100} | changes)
    return [learning_rate(step, run) for step in range(140)]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_the_warm_up_starts_above_zero_and_ends_at_the_peak(schedule):
    found = rates(schedule=schedule)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[0] > 0
    assert found[19] == found[20] == 1.0


def test_the_cosine_is_half_a_period_between_the_warm_up_and_the_horizon():
    found = rates(schedule="cosine")
    assert found[20:101] == pytest.approx([0.1 + 0.45 * (1 + math.cos(math.pi * k / 80)) for k in range(81)])
    assert found[60] == pytest.approx(0.55)  # half-way in time is half-way in the rate


def test_the_line_goes_from_the_peak_to_the_minimum():
    found = rates(schedule="linear")
    assert found[20:101] == pytest.approx([1 - 0.9 * k / 80 for k in range(81)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_rate_stays_at_the_minimum_from_the_horizon_on(schedule):
    """A cosine that is evaluated past its end rises again."""
    found = rates(schedule=schedule)
    assert found[99] > 0.1
    assert found[100:] == [0.1] * 40
    assert rates(schedule=schedule, horizon=50)[50:] == [0.1] * 90


def test_the_horizon_replaces_the_number_of_steps():
    assert rates(horizon=90, steps=100) == rates(steps=90)
    assert rates(horizon=100, steps=1000) == rates(steps=100)


def test_a_constant_rate_stays_at_the_peak_past_the_horizon():
    assert rates(schedule="constant", horizon=50)[19:] == [1.0] * 121


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_without_a_warm_up_the_first_step_has_the_peak(schedule):
    assert rates(schedule=schedule, warmup=0)[0] == 1.0


def test_a_run_that_is_shorter_than_its_warm_up_does_not_shorten_it():
    found = rates(steps=10)
    assert found[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert found[20:] == [0.1] * 120


def test_a_run_that_ends_with_its_warm_up_divides_by_nothing():
    assert rates(steps=20)[19:22] == [1.0, 0.1, 0.1]


def test_the_schedule_is_a_function_of_the_step_alone():
    run = config(warmup=20, steps=100)
    forwards = [learning_rate(step, run) for step in range(140)]
    assert [learning_rate(step, run) for step in reversed(range(140))] == forwards[::-1]
