"""The rounds of timing on a simulated machine: the order of the arms, the blocks, warming up, and when rounds end."""

import dataclasses
import itertools

import pytest

from harness.bench.comparison import Arm
from harness.bench.rounds import FEWEST_SHORT_ROUNDS, INTERVAL_CHECKS, rounds_to_decide
from harness.bench.usage import Usage
from harness.bench.work import Verification, WitnessedCall, Work
from harness.tests.bench.simulated_machine import Machine, comparison


def test_the_arms_take_turns_block_by_block_in_random_order():
    machine = Machine(noise=0.5)
    result = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01)))
    blocks = [entry.removeprefix("prepare ") for entry in machine.log if entry.startswith("prepare")]
    rounds = len(result.seconds["b"])
    turns = [tuple(blocks[i : i + 2]) for i in range(len(blocks) - 2 * rounds, len(blocks), 2)]
    assert all(set(turn) == {"control", "b"} for turn in turns)
    assert len(set(turns)) == 2, "both orders occur"


def test_the_order_is_the_same_for_the_same_seed():
    logs = []
    for seed in (1, 1, 2):
        machine = Machine(noise=0.5)
        machine.measure(comparison(*(machine.arm(n, 0.01) for n in ("control", "b", "c", "d"))), seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


def test_a_block_takes_30_ms_of_the_fastest_arm_and_has_the_same_calls_for_all_arms():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.004), machine.arm("fast", 0.001)))
    assert result.calls_per_block == 30
    calls = machine.log.count("fast"), machine.log.count("control")
    assert calls[0] == calls[1]


def test_a_block_has_at_least_three_calls_and_one_if_a_call_is_long():
    machine = Machine()
    assert machine.measure(comparison(machine.arm("control", 0.2))).calls_per_block == 3
    assert machine.measure(comparison(machine.arm("control", 0.3))).calls_per_block == 1


def test_an_observation_is_the_best_call_of_its_block():
    machine = Machine()
    warm_up, block = [0.1] * 8, [0.3, 0.125, 0.2]
    seconds = itertools.chain(warm_up, itertools.cycle(block))

    def call():
        machine.now += next(seconds)

    control = Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(control))
    assert result.seconds["control"] == pytest.approx([0.125] * FEWEST_SHORT_ROUNDS)


def warming(machine, *, calls, slow):
    """An arm whose first `calls` calls take `slow` times as long."""
    count = itertools.count()

    def call():
        machine.now += 0.02 * (slow if next(count) < calls else 1.0)

    return Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))


def test_an_arm_is_called_until_its_times_have_settled():
    machine = Machine()
    result = machine.measure(comparison(warming(machine, calls=5, slow=3.0)))
    assert result.figures["control"]["warm"]["calls"] > 5
    assert result.seconds["control"] == pytest.approx([0.02] * FEWEST_SHORT_ROUNDS)
    assert not result.notes


def test_an_arm_that_was_not_warm_when_its_times_counted_is_reported():
    machine = Machine()
    steps = itertools.count()

    def call():
        machine.now += 0.1 * 0.8 ** next(steps)

    falling = Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(falling))
    assert result.figures["control"]["warm"]["reached"] is False
    assert any("control was not warm" in note for note in result.notes)


def test_a_few_long_calls_do_not_show_whether_an_arm_was_warm():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 5.0)), seconds=1.0)
    assert result.figures["control"]["warm"]["reached"] is None


def test_a_slow_arms_block_does_not_grow_with_a_fast_one():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.04), machine.arm("fast", 0.0001)))
    assert result.calls_per_block == 6, "a quarter of a second of the slow one, not 300 calls of it"


def test_preparing_is_not_timed():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.02, prepare_seconds=1.0)), seconds=10)
    assert result.seconds["control"][0] == pytest.approx(0.02)


def test_quiet_arms_stop_at_the_first_check_of_the_intervals():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.02)))
    assert (len(result.seconds["b"]), result.stopped) == (FEWEST_SHORT_ROUNDS, "interval")


def test_noisy_arms_continue_until_the_last_check_of_the_intervals():
    machine = Machine(noise=3.0)
    result = machine.measure(comparison(machine.arm("control", 0.2), machine.arm("b", 0.2)), seconds=1e6)
    assert (len(result.seconds["b"]), result.stopped) == (INTERVAL_CHECKS[-1], "rounds")


def test_the_budget_ends_the_rounds_even_if_a_difference_is_plain():
    machine = Machine(noise=0.5)
    result = machine.measure(comparison(machine.arm("control", 1.0), machine.arm("b", 9.0)), seconds=100)
    assert result.stopped == "budget"
    assert machine.now < 110


def test_four_rounds_are_measured_with_any_budget():
    machine = Machine(noise=0.5)
    result = machine.measure(comparison(machine.arm("control", 5.0), machine.arm("b", 5.0)), seconds=1.0)
    assert (len(result.seconds["b"]), result.stopped) == (4, "budget")


def test_eight_short_rounds_are_measured_with_any_budget():
    machine = Machine(noise=0.5)
    result = machine.measure(comparison(machine.arm("control", 0.05), machine.arm("b", 0.05)), seconds=0.01)
    assert (len(result.seconds["b"]), result.stopped) == (8, "budget")


def rounds_and_stop(*, noise, most_seconds=None, effect=None, ratio=1.0):
    machine = Machine(noise=noise)
    arms = comparison(machine.arm("control", 0.3), machine.arm("b", 0.3 * ratio))
    result = machine.measure(arms, seconds=6.0, most_seconds=most_seconds, effect=effect)
    return len(result.seconds["b"]), result.stopped


def test_a_comparison_that_is_nearly_decided_goes_on_beyond_its_share():
    """Ten rounds are its share; with the time of sixty it goes on, unless even that would not decide it."""
    share, stopped = rounds_and_stop(noise=0.15)
    assert stopped == "budget"
    longer, stopped = rounds_and_stop(noise=0.15, most_seconds=36.0)
    assert longer > share
    assert stopped == "interval"
    assert rounds_and_stop(noise=3.0, most_seconds=36.0)[1] == "budget"
    assert rounds_and_stop(noise=3.0, most_seconds=36.0)[0] <= share


def test_a_smaller_difference_takes_more_rounds():
    coarse, fine = (rounds_and_stop(noise=0.06, most_seconds=1e3, effect=effect) for effect in (0.2, 0.04))
    assert coarse[1] == fine[1] == "interval"
    assert fine[0] > 2 * coarse[0]


def test_the_verdict_is_about_the_difference_that_was_to_be_decided():
    machine = Machine(noise=0.6)
    arms = comparison(machine.arm("control", 0.3), machine.arm("b", 0.3))
    coarse = machine.measure(arms, seconds=6.0, effect=0.9).ratios["b"]
    assert max(coarse.high, 1 / coarse.low) > 1.10
    assert coarse.verdict == "SAME"


def test_a_large_ratio_is_known_well_enough_at_a_tenth_of_itself():
    level, _ = rounds_and_stop(noise=0.4, most_seconds=1e3)
    large, stopped = rounds_and_stop(noise=0.4, most_seconds=1e3, ratio=9.0)
    assert (large < level / 2, stopped) == (True, "interval")


def test_the_rounds_that_decide_are_foretold_from_the_first_ones():
    machine = Machine(noise=0.4)
    arms = comparison(machine.arm("control", 0.3), machine.arm("b", 0.3))
    few = machine.measure(arms, seconds=10.0)
    foretold = rounds_to_decide(few.ratios.values(), few.effect)
    needed, _ = rounds_and_stop(noise=0.4, most_seconds=1e3)
    assert needed / 2 <= foretold <= 2 * needed


def test_one_stalled_round_does_not_make_the_others_long():
    machine, calls = Machine(), itertools.count()

    def call():
        machine.now += 3.0 if next(calls) == 15 else 0.1

    result = machine.measure(comparison(Arm("control", lambda: Work(call, lambda: 42, tokens=1))), seconds=0.01)
    assert len(result.seconds["control"]) == 8
    assert next(calls) > 15, "there was a stall"


def seconds_under_profiler(seconds):
    return lambda work: WitnessedCall(ledgers={}, seconds=seconds)


@pytest.mark.parametrize(("witnessed", "calls"), [(3.0, 4), (0.5, 4), (0.0, 4), (0.2, 5), (None, 5)])
def test_arms_that_are_all_long_are_not_called_again_to_warm_up(witnessed, calls):
    """They were called to be verified and witnessed; 0 seconds are those of a part of a call."""
    machine = Machine()
    arms = machine.arm("control", 2.0), machine.arm("b", 2.0)
    witness = None if witnessed is None else seconds_under_profiler(witnessed)
    result = machine.measure(comparison(*arms), seconds=1.0, witness=witness)
    assert (machine.log.count("control"), result.calls_per_block) == (calls, 1)
    assert len(result.seconds["control"]) == len(result.seconds["b"]) == 4


def test_beside_a_shorter_arm_the_first_round_of_long_arms_does_not_count():
    """Neither may start warmer than the other, and no round has an input that an arm has seen before."""
    machine, inputs = Machine(), []
    long = Arm("control", lambda: dataclasses.replace(machine.arm("control", 2.0).build(), use_input=inputs.append))
    result = machine.measure(comparison(long, machine.arm("b", 0.2)), seconds=1.0, witness=seconds_under_profiler(0.9))
    assert (machine.log.count("control"), len(result.seconds["control"])) == (5, 4)
    assert machine.log.count("b") > 5
    assert inputs == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("seconds", [2.0, 0.2])
def test_an_arm_that_raises_in_the_first_round_costs_the_others_nothing(seconds):
    machine = Machine()
    fragile = Arm("fragile", lambda: Work(call=lambda: 1 / 0, answer=lambda: 42, tokens=1))
    arms = machine.arm("control", 2.0), machine.arm("b", seconds), fragile
    result = machine.measure(comparison(*arms), seconds=1.0, witness=seconds_under_profiler(3.0))
    assert "ZeroDivisionError" in result.verifications["fragile"].message
    assert set(result.seconds) == {"control", "b"}


@pytest.mark.parametrize("witnessed", [0.03, 0.0])
def test_one_slow_call_does_not_make_an_arm_long(witnessed):
    """A call is long if it was long under the profiler too: a stall in the first call does not make it long."""
    machine, stalls = Machine(), iter([0.3])

    def call():
        machine.log.append("control")
        machine.now += next(stalls, 0.02)

    arm = Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(arm), witness=seconds_under_profiler(witnessed))
    assert result.figures["control"]["warm"]["calls"] >= 8
    assert result.calls_per_block == 3


@pytest.mark.parametrize(("busy", "rounds"), [((), 4), ((2,), 5), ((1, 2), 6), ((1, 2, 4), 6)], ids=str)
def test_a_long_round_in_which_the_machine_was_busy_is_repeated_at_most_twice(busy, rounds):
    machine = Machine()

    def arm(name):
        made = iter(range(100))

        def call():
            machine.now += 4.0 if next(made) in busy else 2.0

        return Arm(name, lambda: Work(call=call, answer=lambda: 42, tokens=1))

    result = machine.measure(comparison(arm("control"), arm("b")), seconds=1.0, witness=seconds_under_profiler(3.0))
    assert len(result.seconds["control"]) == rounds
    assert result.ratios["b"].ratio == pytest.approx(1)


def test_what_the_blocks_used_of_the_machine_is_recorded():
    machine = Machine()

    def count():  # of each second: 1.5 of processors, 1000 pages, 50 preemptions, a quarter that others took
        return Usage(1.5 * machine.now, 1000 * machine.now, 50 * machine.now, 0.25 * machine.now)

    arm = machine.measure(comparison(machine.arm("control", 0.04)), count=count).row()["arms"][0]
    assert arm["witness"]["busy_threads"] == pytest.approx(1.5)
    assert arm["usage"] == {
        "processor_seconds": pytest.approx(0.06),
        "fresh_pages": 40,
        "preemptions": pytest.approx(50),
        "stolen": pytest.approx(0.25),
    }


def test_building_and_verifying_do_not_use_up_the_time_of_timing():
    machine = Machine(noise=3.0)
    plain = machine.arm("control", 1.0)

    def slow_to_verify(name, work):
        machine.now += 1000
        return Verification("pass", "")

    result = machine.measure(comparison(plain, machine.arm("b", 1.0), verify=slow_to_verify), seconds=100)
    assert len(result.seconds["b"]) > 8
    assert result.timing_seconds < 110
