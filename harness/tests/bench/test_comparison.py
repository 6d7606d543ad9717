"""The comparing engine under a simulated clock: who is timed, in which order, for how long, and who is refused."""

import dataclasses
import itertools
import json
import random

import pytest

from harness.bench.comparison import LOOKS, Arm, Budget, Comparison, Verification, Witnessed, Work, measure
from harness.core.errors import HarnessError, MissingAbility
from harness.core.record_files import encode


class Machine:
    """A clock that only work moves on, and a log of who worked."""

    def __init__(self, noise=0.0):
        self.now = 0.0
        self.log = []
        self.noise = noise
        self.rng = random.Random(0)

    def clock(self):
        return self.now

    def arm(self, name, seconds, *, answer=42, prepare_seconds=0.0, twin_of=None, tokens=10):
        def call():
            self.log.append(name)
            self.now += seconds * (1 + self.noise * self.rng.random())

        def prepare():
            self.log.append(f"prepare {name}")
            self.now += prepare_seconds

        def build():
            self.log.append(f"build {name}")
            return Work(call=call, answer=lambda: answer, prepare=prepare, tokens=tokens)

        return Arm(name, build, twin_of=twin_of)

    def measure(self, comparison, **options):
        return measure(comparison, clock=self.clock, **options)


def right_is_42(name, work):
    answer = work.answer()
    if answer == 42:
        return Verification("pass", "equal to the control's answer")
    return Verification("fail", f"answers {answer}, the control answers 42")


def comparison(*arms, control="control", verify=right_is_42):
    return Comparison("toy", "A toy", "forward", control, arms, verify, axis="T", point=8)


def test_a_ratio_is_an_arms_time_over_the_controls():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.010), machine.arm("fast", 0.005)))
    assert measured.ratios["fast"].ratio == pytest.approx(0.5)
    assert measured.ratios["fast"].verdict == "FASTER"
    assert "control" not in measured.ratios


def test_a_wrong_arm_has_no_time_however_fast_it_is():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.010), machine.arm("cheat", 0.0001, answer=41)))
    row = next(arm for arm in measured.row()["arms"] if arm["arm"] == "cheat")
    assert row["verified"] == {"verdict": "fail", "message": "answers 41, the control answers 42"}
    assert (row["seconds"], row["median_seconds"], row["tokens_per_second"]) == (None, None, None)
    assert "cheat" not in measured.ratios
    assert "cheat" not in machine.log, "it was never even run on the clock"
    assert measured.seconds["control"], "the others are measured all the same"


def test_beside_a_wrong_control_nothing_is_timed():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.010, answer=0), machine.arm("fast", 0.005)))
    assert measured.findings["control"].verdict == "fail"
    assert measured.findings["fast"].verdict == "error"
    assert "unverified" in measured.findings["fast"].message
    assert not measured.seconds


def test_the_control_is_verified_first_wherever_it_stands():
    machine, judged = Machine(), []

    def verify(name, work):
        judged.append(name)
        return Verification("pass", "")

    machine.measure(comparison(machine.arm("a", 0.01), machine.arm("control", 0.01), verify=verify))
    assert judged[:2] == ["control", "a"]


def test_the_arms_take_turns_block_by_block_in_random_order():
    machine = Machine(noise=0.5)
    measured = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01)))
    blocks = [entry.removeprefix("prepare ") for entry in machine.log if entry.startswith("prepare")]
    rounds = len(measured.seconds["b"])
    turns = [tuple(blocks[i : i + 2]) for i in range(len(blocks) - 2 * rounds, len(blocks), 2)]
    assert all(set(turn) == {"control", "b"} for turn in turns)
    assert len(set(turns)) == 2, "both orders come up"


def test_the_order_is_the_same_for_the_same_seed():
    logs = []
    for seed in (1, 1, 2):
        machine = Machine(noise=0.5)
        machine.measure(comparison(*(machine.arm(n, 0.01) for n in ("control", "b", "c", "d"))), seed=seed)
        logs.append(machine.log)
    assert logs[0] == logs[1] != logs[2]


def test_the_order_of_building_varies_with_the_seed():
    firsts = set()
    for seed in range(8):
        machine = Machine()
        machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01)), seed=seed)
        firsts.add(machine.log[0])
    assert firsts == {"build control", "build b"}


def test_a_block_holds_30_ms_of_the_fastest_arm_and_the_same_calls_for_all():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.004), machine.arm("fast", 0.001)))
    assert measured.calls_per_block == 30
    calls = machine.log.count("fast"), machine.log.count("control")
    assert calls[0] == calls[1]


def test_a_block_holds_three_calls_at_least_and_one_of_a_long_call():
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
    measured = machine.measure(comparison(control))
    assert measured.seconds["control"] == pytest.approx([0.125] * LOOKS[0])


def warming(machine, *, calls, slow):
    """An arm whose first `calls` calls take `slow` times as long."""
    count = itertools.count()

    def call():
        machine.now += 0.02 * (slow if next(count) < calls else 1.0)

    return Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))


def test_an_arm_is_called_until_its_times_have_settled():
    machine = Machine()
    measured = machine.measure(comparison(warming(machine, calls=5, slow=3.0)))
    assert measured.figures["control"]["warm"]["calls"] > 5
    assert measured.seconds["control"] == pytest.approx([0.02] * LOOKS[0])
    assert not measured.notes


def test_an_arm_that_was_not_warm_when_its_times_began_to_count_is_told():
    machine = Machine()
    steps = itertools.count()

    def call():
        machine.now += 0.1 * 0.8 ** next(steps)

    falling = Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    measured = machine.measure(comparison(falling))
    assert measured.figures["control"]["warm"]["reached"] is False
    assert any("control was not warm" in note for note in measured.notes)


def test_of_a_few_long_calls_nobody_can_tell_whether_they_were_warm():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 5.0)), seconds=1.0)
    assert measured.figures["control"]["warm"]["reached"] is None


def test_a_slow_arms_block_does_not_grow_with_a_fast_one():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.04), machine.arm("fast", 0.0001)))
    assert measured.calls_per_block == 6, "a quarter of a second of the slow one, not 300 calls of it"


def test_preparing_is_not_timed():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.02, prepare_seconds=1.0)), seconds=10)
    assert measured.seconds["control"][0] == pytest.approx(0.02)


def test_quiet_arms_stop_at_the_first_look():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.02)))
    assert (len(measured.seconds["b"]), measured.stopped) == (LOOKS[0], "interval")


def test_noisy_arms_go_on_until_the_last_look():
    machine = Machine(noise=3.0)
    measured = machine.measure(comparison(machine.arm("control", 0.2), machine.arm("b", 0.2)), seconds=1e6)
    assert (len(measured.seconds["b"]), measured.stopped) == (LOOKS[-1], "rounds")


def test_the_budget_ends_the_rounds_though_a_difference_is_plain():
    machine = Machine(noise=0.5)
    measured = machine.measure(comparison(machine.arm("control", 1.0), machine.arm("b", 9.0)), seconds=100)
    assert measured.stopped == "budget"
    assert machine.now < 110


def test_four_rounds_are_measured_whatever_the_budget():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 5.0), machine.arm("b", 5.0)), seconds=1.0)
    assert (len(measured.seconds["b"]), measured.stopped) == (4, "budget")


def test_of_short_rounds_eight_are_measured_whatever_the_budget():
    machine = Machine()
    measured = machine.measure(comparison(machine.arm("control", 0.05), machine.arm("b", 0.05)), seconds=0.01)
    assert (len(measured.seconds["b"]), measured.stopped) == (8, "budget")


def test_one_stalled_round_does_not_make_the_others_long():
    machine, calls = Machine(), itertools.count()

    def call():
        machine.now += 3.0 if next(calls) == 15 else 0.1

    measured = machine.measure(comparison(Arm("control", lambda: Work(call, lambda: 42, tokens=1))), seconds=0.01)
    assert len(measured.seconds["control"]) == 8
    assert next(calls) > 15, "there was a stall"


def test_only_the_chosen_arms_are_measured_and_always_with_their_control():
    machine = Machine()
    arms = [machine.arm(name, 0.01) for name in ("control", "b", "c")]
    arms.append(machine.arm("b again", 0.01, twin_of="b"))
    assert set(machine.measure(comparison(*arms), only=["c"]).seconds) == {"control", "c"}
    assert set(machine.measure(comparison(*arms), only=["b again"]).seconds) == {"control", "b", "b again"}
    assert set(machine.measure(comparison(*arms), only=["control"]).seconds) == {"control"}


def test_a_twin_is_held_against_its_twin():
    machine = Machine()
    arms = machine.arm("control", 0.01), machine.arm("b", 0.03), machine.arm("b again", 0.03, twin_of="b")
    measured = machine.measure(comparison(*arms))
    assert measured.ratios["b again"].ratio == pytest.approx(1.0)
    assert measured.ratios["b again"].verdict == "SAME"
    assert measured.row()["ratios"][1]["against"] == "b"


def test_a_missing_ability_is_a_skip_and_a_crash_an_error():
    machine = Machine()

    def missing():
        raise MissingAbility("toy has no flash attention")

    def crash():
        raise TypeError("unexpected keyword\n  'attention'")

    arms = machine.arm("control", 0.01), Arm("flash", missing), Arm("odd", crash)
    measured = machine.measure(comparison(*arms))
    assert measured.findings["flash"] == Verification("skip", "toy has no flash attention")
    assert measured.findings["odd"] == Verification(
        "error", "TypeError while it was built: unexpected keyword 'attention'"
    )
    assert set(measured.seconds) == {"control"}


def test_without_its_control_an_arm_is_skipped_by_name():
    machine = Machine()

    def missing():
        raise MissingAbility("toy has no naive attention")

    measured = machine.measure(comparison(Arm("control", missing), machine.arm("b", 0.01)))
    assert measured.findings["b"].verdict == "skip"
    assert "control" in measured.findings["b"].message
    assert not measured.seconds


def test_an_arm_that_breaks_on_the_clock_loses_its_times():
    machine = Machine()
    calls = iter(range(60))

    def call():
        machine.now += 0.01
        if next(calls) > 40:
            raise MemoryError("out of memory")

    fragile = Arm("fragile", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    measured = machine.measure(comparison(machine.arm("control", 0.01), fragile))
    assert measured.findings["fragile"].verdict == "error"
    assert set(measured.seconds) == {"control"}
    assert len(measured.seconds["control"]) == LOOKS[0]


def test_an_arm_that_breaks_while_it_is_warmed_up_costs_the_others_nothing():
    machine = Machine()
    fragile = Arm("fragile", lambda: Work(call=lambda: 1 / 0, answer=lambda: 42, tokens=1))
    measured = machine.measure(comparison(machine.arm("control", 0.01), fragile))
    assert measured.findings["fragile"].verdict == "error"
    assert "ZeroDivisionError while it was warmed up" in measured.findings["fragile"].message
    assert set(measured.seconds) == {"control"}
    alone = machine.measure(comparison(dataclasses.replace(fragile, name="control")))
    assert (alone.seconds, alone.stopped) == ({}, "nothing to measure")


def watched_for(seconds):
    return lambda work: Witnessed(ledgers={}, seconds=seconds)


def test_arms_that_are_all_long_are_not_called_once_more_to_warm_up():
    """They have been verified and watched. Where one arm is shorter, none may begin warmer than the other."""
    for seconds, calls in ((3.0, 4), (0.5, 5), (0.0, 5)):
        machine = Machine()
        arms = machine.arm("control", 2.0), machine.arm("b", 2.0)
        measured = machine.measure(comparison(*arms), seconds=1.0, watch=watched_for(seconds))
        assert (machine.log.count("control"), measured.calls_per_block) == (calls, 1)


def test_one_slow_call_does_not_make_an_arm_long():
    """Long is what was long when it was watched, too: a stall in the first call is not."""
    machine, stalls = Machine(), iter([0.3])

    def call():
        machine.log.append("control")
        machine.now += next(stalls, 0.02)

    arm = Arm("control", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    measured = machine.measure(comparison(arm), watch=watched_for(0.03))
    assert measured.figures["control"]["warm"]["calls"] >= 8
    assert measured.calls_per_block == 3


@pytest.mark.parametrize(("busy", "rounds"), [((), 4), ((2,), 5), ((1, 2), 6), ((1, 2, 4), 6)], ids=str)
def test_a_long_round_in_which_the_machine_was_busy_is_made_again_twice_at_most(busy, rounds):
    machine = Machine()

    def arm(name):
        made = iter(range(100))

        def call():
            machine.now += 4.0 if next(made) in busy else 2.0

        return Arm(name, lambda: Work(call=call, answer=lambda: 42, tokens=1))

    measured = machine.measure(comparison(arm("control"), arm("b")), seconds=1.0, watch=watched_for(3.0))
    assert len(measured.seconds["control"]) == rounds
    assert measured.ratios["b"].ratio == pytest.approx(1)


def test_a_verifier_that_crashes_refuses_the_arm():
    machine = Machine()

    def verify(name, work):
        if name == "b":
            raise RuntimeError("shapes differ")
        return Verification("pass", "")

    measured = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01), verify=verify))
    assert measured.findings["b"].verdict == "error"
    assert "b" not in measured.seconds


def test_an_arm_whose_answer_is_wrong_after_timing_loses_its_time():
    """A cache of packed weights that went stale, a state that the timed calls have moved on."""
    machine, answers = Machine(), iter([42, 41])
    plain = machine.arm("drifts", 0.01)
    drifting = Arm("drifts", lambda: dataclasses.replace(plain.build(), answer=lambda: next(answers)))
    measured = machine.measure(comparison(machine.arm("control", 0.01), drifting))
    assert measured.findings["drifts"].verdict == "fail"
    assert measured.findings["drifts"].message.startswith("after timing: ")
    assert set(measured.seconds) == {"control"}
    assert not measured.ratios


def test_a_control_that_is_wrong_after_timing_leaves_no_ratio():
    machine, answers = Machine(), iter([42, 41])
    plain = machine.arm("control", 0.01)
    drifting = Arm("control", lambda: dataclasses.replace(plain.build(), answer=lambda: next(answers)))
    measured = machine.measure(comparison(drifting, machine.arm("b", 0.01)))
    assert set(measured.seconds) == {"b"}
    assert not measured.ratios


def test_memory_and_witness_are_taken_before_the_clock_runs_and_the_witness_again_after_it():
    machine = Machine()

    def watch(work):
        machine.log.append("watch")
        return Witnessed({"profiler": 1000}, {"operations": 7})

    plain = machine.arm("control", 0.01)
    arm = Arm("control", lambda: dataclasses.replace(plain.build(), ledgers={"closed form": lambda: 990}))
    row = machine.measure(comparison(arm), watch=watch).row()
    assert machine.log.count("watch") == 2
    assert machine.log[-1] == "watch"
    assert machine.log.index("watch") < machine.log.index("control")
    assert row["arms"][0]["ledgers"] == {"profiler": 1000, "closed form": 990}
    assert row["arms"][0]["peak_memory_bytes"] == 1000
    assert row["arms"][0]["peak_memory_ledger"] == "profiler"
    assert row["arms"][0]["witness"]["operations"] == 7


def test_an_arm_that_remembers_its_answers_is_refused():
    """A cached step as a table of what it answered before: right, float32 when it was watched, and 24 times faster."""
    machine, seen = Machine(), iter([{"products": {"float32": 1.0}}, {"products": {}}])
    measured = machine.measure(comparison(machine.arm("control", 0.01)), watch=lambda work: Witnessed({}, next(seen)))
    assert measured.findings["control"].verdict == "fail"
    assert "remembers answers" in measured.findings["control"].message
    assert not measured.seconds


def test_a_subject_that_exits_while_it_is_timed_is_an_error_like_any_other():
    machine = Machine()
    calls = iter(range(60))

    def call():
        machine.now += 0.01
        if next(calls) > 30:
            raise SystemExit(3)

    leaving = Arm("leaves", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    measured = machine.measure(comparison(machine.arm("control", 0.01), leaving))
    assert measured.findings["leaves"] == Verification("error", "SystemExit while it was timed: 3")
    assert set(measured.seconds) == {"control"}


def test_an_arm_that_did_not_run_what_its_name_says_is_refused_before_it_is_timed():
    machine = Machine()

    def watch(work):
        return Witnessed({}, {}, lambda claims: "its attention ran as flash" if claims else None)

    naive = dataclasses.replace(machine.arm("naive", 0.01), claims={"attention": "formula"})
    measured = machine.measure(comparison(machine.arm("control", 0.01), naive), watch=watch)
    assert measured.findings["naive"] == Verification("fail", "its attention ran as flash")
    assert set(measured.seconds) == {"control"}
    assert "naive" not in machine.log


def test_a_witness_that_fails_is_a_note_unless_the_arm_makes_a_claim():
    machine = Machine()

    def watch(work):
        raise RuntimeError("no profiler here")

    claiming = dataclasses.replace(machine.arm("b", 0.01), claims={"compiled": True})
    measured = machine.measure(comparison(machine.arm("control", 0.01), claiming), watch=watch)
    row = measured.row()
    assert row["notes"][0] == "memory and witness of control: RuntimeError: no profiler here"
    assert row["arms"][0]["seconds"]
    assert row["arms"][0]["peak_memory_bytes"] is None
    assert measured.findings["b"].verdict == "error", "nobody saw that it is what it is called"


class Roofed:
    """Ceilings of one yardstick that takes 0.02 s; an arm's fraction is the yardstick's time over its own."""

    def __init__(self, machine):
        self.machine = machine

    def build(self, works):
        return {"gemm float32": self.machine.arm("yardstick", 0.02).build()}

    def under(self, work, times, yardsticks):
        assert len(times) == len(yardsticks["gemm float32"]), "measured in the same rounds"
        fraction = yardsticks["gemm float32"][0] / times[0]
        bounds = {"fraction": fraction, "low": fraction, "high": fraction, "impossible": fraction > 1}
        return {"name": "gemm float32", "regime": "compute", **bounds}


def test_every_arm_is_placed_under_ceilings_that_took_their_turns():
    machine = Machine()
    row = machine.measure(comparison(machine.arm("control", 0.04)), ceilings=Roofed(machine)).row()
    assert row["arms"][0]["ceiling"]["fraction"] == pytest.approx(0.5)
    assert row["ceilings"][0]["name"] == "gemm float32"
    assert len(row["ceilings"][0]["seconds"]) == LOOKS[0]


@pytest.mark.parametrize(("seconds", "calls"), [(0.04, 3), (2.0, 1)])
def test_a_ceiling_is_the_best_of_as_many_calls_as_an_arm(seconds, calls):
    """Of one call where an arm has the best of three, noise would make the ceiling lower and the arm's share higher."""
    machine = Machine()
    machine.measure(comparison(machine.arm("control", seconds)), ceilings=Roofed(machine), seconds=1.0)
    first = machine.log.index("prepare yardstick")
    block = itertools.takewhile(lambda who: who == "yardstick", machine.log[first + 1 :])
    assert len(list(block)) == calls


def test_an_arm_above_its_ceiling_has_no_time():
    machine = Machine()
    arms = machine.arm("control", 0.04), machine.arm("miracle", 0.01)
    measured = machine.measure(comparison(*arms), ceilings=Roofed(machine))
    assert measured.findings["miracle"].verdict == "fail"
    assert "200% of the machine's ceiling" in measured.findings["miracle"].message
    assert "miracle" not in measured.seconds
    assert "miracle" not in measured.ratios


def test_how_many_cores_were_at_work_is_on_record():
    machine = Machine()
    row = machine.measure(comparison(machine.arm("control", 0.04)), busy=lambda: 1.5 * machine.now).row()
    assert row["arms"][0]["witness"]["busy_threads"] == pytest.approx(1.5)


def test_further_figures_that_fail_are_a_note():
    machine = Machine()

    def broken():
        raise ValueError("no cache to count")

    plain = machine.arm("control", 0.01)
    arm = Arm("control", lambda: dataclasses.replace(plain.build(), extras=broken))
    row = machine.measure(comparison(arm)).row()
    assert row["notes"] == ["further figures of control: ValueError: no cache to count"]
    assert row["arms"][0]["seconds"]


def test_the_row_is_json_and_carries_tokens_a_second_and_counted_positions():
    machine = Machine()

    def verify(name, work):
        return Verification("pass", "", witness={"positions": 109, "positions_closed_form": 109})

    measured = machine.measure(comparison(machine.arm("control", 0.5, tokens=100), verify=verify))
    row = json.loads(json.dumps(encode(measured.row())))
    assert row["kind"] == "comparison"
    assert row["arms"][0]["tokens_per_second"] == pytest.approx(200)
    assert row["arms"][0]["positions"] == row["arms"][0]["positions_closed_form"] == 109
    assert measured.comparison.label == "toy forward, T=8"


def test_a_comparison_without_its_control_cannot_be_written_down():
    machine = Machine()
    with pytest.raises(HarnessError, match="hold"):
        comparison(machine.arm("a", 1), control="b")
    with pytest.raises(HarnessError, match="distinct"):
        comparison(machine.arm("control", 1), machine.arm("control", 1))


def test_a_budget_is_shared_by_weight_and_savings_are_passed_on():
    budget = Budget(100, [1, 1, 2])
    assert budget.allot(1) == pytest.approx(25)
    budget.spend(10)
    assert budget.allot(1) == pytest.approx(30)
    budget.spend(100)
    assert budget.allot(2) == 0.0


def test_building_and_verifying_do_not_eat_the_time_of_timing():
    machine = Machine(noise=3.0)
    plain = machine.arm("control", 1.0)

    def slow_to_verify(name, work):
        machine.now += 1000
        return Verification("pass", "")

    measured = machine.measure(comparison(plain, machine.arm("b", 1.0), verify=slow_to_verify), seconds=100)
    assert len(measured.seconds["b"]) > 8
    assert measured.timing_seconds < 110
