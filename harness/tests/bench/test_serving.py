"""Serving measured: the virtual clock, the figures of a timeline, and the closed form of the steps."""

import itertools

import pytest

from harness.bench import serving
from harness.bench.serving import Arrival, Timeline


class FakeEngine:
    """Gives each of the first `slots` requests that are left one token a step, first come, first served."""

    def __init__(self, slots):
        self.slots, self.left, self.made = slots, [], []

    def submit(self, ids, new_tokens, *, temperature):
        self.left.append(new_tokens)
        self.made.append([])
        return len(self.left) - 1

    def step(self):
        for number in [number for number, left in enumerate(self.left) if left][: self.slots]:
            self.left[number] -= 1
            self.made[number].append(7)

    def tokens(self, number):
        return list(self.made[number])


def served(plan, *, slots, static, step_seconds=1.0):
    ticks = itertools.count()
    clock = lambda: (next(ticks) + 1) // 2 * step_seconds  # noqa: E731 - a step lasts step_seconds, and nothing else does
    return serving.serve(FakeEngine(slots), plan, [[1]] * len(plan), slots=slots, static=static, clock=clock)


AT_ONCE = [Arrival(0.0, 1, new) for new in (5, 1, 2, 3)]


@pytest.mark.parametrize(("static", "steps"), [(False, 6), (True, 5 + 3)])
def test_the_steps_of_a_plan_are_those_of_the_closed_form(static, steps):
    """In two slots: 5 beside 1, 2 and 3, which are 6 one after the other; or batches of (5, 1) and (2, 3)."""
    run = served(AT_ONCE, slots=2, static=static)
    assert run.steps == steps
    assert serving.ideal_steps(run.seen, [5, 1, 2, 3], slots=2, static=static) == steps


def test_the_clock_jumps_over_gaps_in_which_nothing_is_left_to_do():
    run = served([Arrival(0.0, 1, 2), Arrival(100.0, 1, 1)], slots=1, static=False)
    assert run.times == [[1.0, 2.0], [101.0]]
    assert run.first_token_seconds() == [1.0, 1.0]
    assert run.steps == 3


def test_a_request_that_arrives_in_a_step_waits_for_its_end():
    run = served([Arrival(0.0, 1, 3), Arrival(0.5, 1, 1)], slots=2, static=False)
    assert run.first_token_seconds() == [1.0, 1.5]
    static = served([Arrival(0.0, 1, 3), Arrival(0.5, 1, 1)], slots=2, static=True)
    assert static.first_token_seconds() == [1.0, 3.5]


@pytest.mark.parametrize("slots", [1, 3, 8])
@pytest.mark.parametrize("static", [False, True])
def test_steps_agree_with_the_closed_form_for_random_arrivals(slots, static):
    plan = serving.make_plan(40, rate=30, longest_prompt=4, most_tokens=12, seed=slots)
    run = served(plan, slots=slots, static=static)
    lengths = [each.new_tokens for each in plan]
    assert [len(tokens) for tokens in run.tokens] == lengths
    assert run.steps == serving.ideal_steps(run.seen, lengths, slots=slots, static=static)


def test_figures_have_the_share_of_slots_that_got_a_token():
    run = served(AT_ONCE, slots=2, static=True)
    found = serving.figures([run], slots=2, static=True)
    assert found["occupancy_share"] == found["ideal_occupancy_share"] == 11 / 16
    assert found["between_tokens_p99_seconds"] == 1.0
    assert found["served_tokens_per_second"] == 11 / 8
    assert serving.figures([], slots=2, static=True) == {}


def test_an_engine_that_never_gives_the_last_token_is_given_up():
    class Lazy(FakeEngine):
        def submit(self, ids, new_tokens, *, temperature):
            return super().submit(ids, new_tokens - 1, temperature=temperature)

    run = serving.serve(Lazy(2), AT_ONCE, [[1]] * 4, slots=2, static=False)
    assert [len(tokens) for tokens in run.tokens] == [4, 0, 1, 2]
    assert run.steps == 11 + 4


def test_a_quantile_is_one_of_the_values():
    assert serving.quantile([3.0, 1.0, 2.0, 4.0], 0.5) == 2.0
    assert serving.quantile([3.0, 1.0, 2.0, 4.0], 0.99) == 4.0
    assert serving.quantile([5.0], 0.01) == 5.0


def test_a_plan_begins_with_an_arrival_and_keeps_its_limits():
    plan = serving.make_plan(500, rate=60, longest_prompt=9, most_tokens=12)
    assert plan[0].at == 0.0
    assert {each.new_tokens for each in plan} == set(range(1, 13))
    assert {each.prompt for each in plan} == set(range(1, 10))
    assert 400 < plan[-1].at < 600  # 499 gaps of a second on average; one standard deviation is 22 s
    assert all(each.at == 0.0 for each in serving.make_plan(3, rate=0, longest_prompt=9, most_tokens=12))


def test_the_throughput_counts_from_the_first_arrival():
    run = Timeline([2.0, 3.0], [0, 0], [[4.0, 6.0], [7.0]], [[1, 1], [1]])
    assert run.tokens_per_second() == 3 / 5
