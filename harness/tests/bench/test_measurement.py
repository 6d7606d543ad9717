"""The measurement of a comparison on a simulated machine: arms that are verified, witnessed, timed and rejected."""

import dataclasses
import itertools
import json

import pytest

from harness.bench.comparison import Arm
from harness.bench.rounds import FEWEST_SHORT_ROUNDS
from harness.bench.work import Sample, Verification, WitnessedCall, Work
from harness.core.errors import HarnessError, MissingAbility
from harness.core.record_files import encode
from harness.tests.bench.simulated_machine import Machine, comparison


def test_a_ratio_is_an_arms_time_over_the_controls():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.010), machine.arm("fast", 0.005)))
    assert result.ratios["fast"].ratio == pytest.approx(0.5)
    assert result.ratios["fast"].verdict == "FASTER"
    assert "control" not in result.ratios


def test_a_wrong_arm_has_no_time_however_fast_it_is():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.010), machine.arm("cheat", 0.0001, answer=41)))
    row = next(arm for arm in result.row()["arms"] if arm["arm"] == "cheat")
    assert row["verified"] == {"verdict": "fail", "message": "answers 41, the control answers 42"}
    assert (row["seconds"], row["median_seconds"], row["tokens_per_second"]) == (None, None, None)
    assert "cheat" not in result.ratios
    assert "cheat" not in machine.log, "it was never timed"
    assert result.seconds["control"], "the others are measured"


def test_beside_a_wrong_control_nothing_is_timed():
    machine = Machine()
    result = machine.measure(comparison(machine.arm("control", 0.010, answer=0), machine.arm("fast", 0.005)))
    assert result.verifications["control"].verdict == "fail"
    assert result.verifications["fast"].verdict == "error"
    assert "unverified" in result.verifications["fast"].message
    assert not result.seconds


def test_the_control_is_verified_first_at_any_position():
    machine, judged = Machine(), []

    def verify(name, work):
        judged.append(name)
        return Verification("pass", "")

    machine.measure(comparison(machine.arm("a", 0.01), machine.arm("control", 0.01), verify=verify))
    assert judged[:2] == ["control", "a"]


def test_the_order_of_building_varies_with_the_seed():
    firsts = set()
    for seed in range(8):
        machine = Machine()
        machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01)), seed=seed)
        firsts.add(machine.log[0])
    assert firsts == {"build control", "build b"}


def test_only_the_selected_arms_are_measured_and_always_with_their_control():
    machine = Machine()
    arms = [machine.arm(name, 0.01) for name in ("control", "b", "c")]
    arms.append(machine.arm("b again", 0.01, twin_of="b"))
    assert set(machine.measure(comparison(*arms), only=["c"]).seconds) == {"control", "c"}
    assert set(machine.measure(comparison(*arms), only=["b again"]).seconds) == {"control", "b", "b again"}
    assert set(machine.measure(comparison(*arms), only=["control"]).seconds) == {"control"}


def test_a_twin_is_compared_with_its_original():
    machine = Machine()
    arms = machine.arm("control", 0.01), machine.arm("b", 0.03), machine.arm("b again", 0.03, twin_of="b")
    result = machine.measure(comparison(*arms))
    assert result.ratios["b again"].ratio == pytest.approx(1.0)
    assert result.ratios["b again"].verdict == "SAME"
    assert result.row()["ratios"][1]["against"] == "b"


def test_a_missing_ability_is_a_skip_and_a_crash_an_error():
    machine = Machine()

    def missing():
        raise MissingAbility("toy has no flash attention")

    def crash():
        raise TypeError("unexpected keyword\n  'attention'")

    arms = machine.arm("control", 0.01), Arm("flash", missing), Arm("odd", crash)
    result = machine.measure(comparison(*arms))
    assert result.verifications["flash"] == Verification("skip", "toy has no flash attention")
    assert result.verifications["odd"] == Verification(
        "error", "TypeError while it was built: unexpected keyword 'attention'"
    )
    assert set(result.seconds) == {"control"}


def test_without_its_control_an_arm_is_skipped_by_name():
    machine = Machine()

    def missing():
        raise MissingAbility("toy has no naive attention")

    result = machine.measure(comparison(Arm("control", missing), machine.arm("b", 0.01)))
    assert result.verifications["b"].verdict == "skip"
    assert "control" in result.verifications["b"].message
    assert not result.seconds


def test_an_arm_that_raises_while_it_is_timed_loses_its_times():
    machine = Machine()
    calls = iter(range(60))

    def call():
        machine.now += 0.01
        if next(calls) > 25:  # in the first rounds
            raise MemoryError("out of memory")

    fragile = Arm("fragile", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(machine.arm("control", 0.01), fragile))
    assert result.verifications["fragile"].verdict == "error"
    assert set(result.seconds) == {"control"}
    assert len(result.seconds["control"]) == FEWEST_SHORT_ROUNDS


def test_an_arm_that_raises_while_it_is_warmed_up_costs_the_others_nothing():
    machine = Machine()
    fragile = Arm("fragile", lambda: Work(call=lambda: 1 / 0, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(machine.arm("control", 0.01), fragile))
    assert result.verifications["fragile"].verdict == "error"
    assert "ZeroDivisionError while it was warmed up" in result.verifications["fragile"].message
    assert set(result.seconds) == {"control"}
    alone = machine.measure(comparison(dataclasses.replace(fragile, name="control")))
    assert (alone.seconds, alone.stopped) == ({}, "nothing to measure")


def test_a_verifier_that_crashes_rejects_the_arm():
    machine = Machine()

    def verify(name, work):
        if name == "b":
            raise RuntimeError("shapes differ")
        return Verification("pass", "")

    result = machine.measure(comparison(machine.arm("control", 0.01), machine.arm("b", 0.01), verify=verify))
    assert result.verifications["b"].verdict == "error"
    assert "b" not in result.seconds


def test_an_arm_whose_answer_is_wrong_after_timing_loses_its_time():
    """A cache of packed weights that went stale, or a state that the timed calls changed."""
    machine, answers = Machine(), iter([42, 41])
    plain = machine.arm("drifts", 0.01)
    drifting = Arm("drifts", lambda: dataclasses.replace(plain.build(), answer=lambda: next(answers)))
    result = machine.measure(comparison(machine.arm("control", 0.01), drifting))
    assert result.verifications["drifts"].verdict == "fail"
    assert result.verifications["drifts"].message.startswith("after timing: ")
    assert set(result.seconds) == {"control"}
    assert not result.ratios


def with_inputs(arm, answer):
    """Return the arm with a new input in each round, and `answer(number)` as the output of a call."""

    def build():
        work, numbers = arm.build(), [0]

        def call():
            work.call()
            return answer(numbers[-1])

        return dataclasses.replace(
            work, call=call, use_input=numbers.append, sample=lambda out, number: Sample(number, out)
        )

    return dataclasses.replace(arm, build=build)


def test_what_the_last_timed_call_returned_is_verified_on_an_input_of_that_round():
    machine, judged = Machine(), []

    def verify_sample(name, work, sample):
        judged.append((name, sample))
        return Verification("pass" if sample.answer == 42 + sample.number else "fail", f"found {sample.answer}")

    arms = [
        with_inputs(machine.arm("control", 0.01), lambda number: 42 + number),
        with_inputs(machine.arm("remembers", 0.0001), lambda number: 42),
        machine.arm("keeps nothing", 0.01),
    ]
    result = machine.measure(dataclasses.replace(comparison(*arms), verify_sample=verify_sample))
    rounds = len(result.seconds["control"])
    assert [(name, sample.number) for name, sample in judged] == [("control", rounds), ("remembers", rounds)]
    assert result.verifications["remembers"].message == "while it was timed: found 42"
    assert set(result.seconds) == {"control", "keeps nothing"}
    rows = {arm["arm"]: arm["verified_again"] for arm in result.row()["arms"]}
    assert rows["control"] == f"while it was timed: found {42 + rounds}"
    assert rows["keeps nothing"] == "after timing: equal to the control's answer"


def test_the_memory_of_a_call_is_free_before_the_next_one():
    """Two outputs at once would cost fresh pages, and be the peak of a user who keeps one."""
    alive, most = [0], [0]

    class Output:
        def __init__(self):
            alive[0] += 1
            most[0] = max(most[0], alive[0])

        def __del__(self):
            alive[0] -= 1

    machine = Machine()
    plain = machine.arm("control", 0.01)

    def call(work):
        work.call()
        return Output()

    def build():
        work = plain.build()
        return dataclasses.replace(work, call=lambda: call(work))

    machine.measure(comparison(Arm("control", build)))
    assert most == [1]


def test_a_control_that_is_wrong_after_timing_leaves_no_ratio():
    machine, answers = Machine(), iter([42, 41])
    plain = machine.arm("control", 0.01)
    drifting = Arm("control", lambda: dataclasses.replace(plain.build(), answer=lambda: next(answers)))
    result = machine.measure(comparison(drifting, machine.arm("b", 0.01)))
    assert set(result.seconds) == {"b"}
    assert not result.ratios


def test_memory_and_witness_are_measured_before_timing_and_the_witness_again_after_it():
    machine = Machine()

    def see(work):
        machine.log.append("witness")
        return WitnessedCall({"profiler": 1000}, {"operations": 7})

    plain = machine.arm("control", 0.01)
    arm = Arm("control", lambda: dataclasses.replace(plain.build(), ledgers={"closed form": lambda: 990}))
    row = machine.measure(comparison(arm), witness=see).row()
    assert machine.log.count("witness") == 2
    assert machine.log[-1] == "witness"
    assert machine.log.index("witness") < machine.log.index("control")
    assert row["arms"][0]["ledgers"] == {"profiler": 1000, "closed form": 990}
    assert row["arms"][0]["peak_memory_bytes"] == 1000
    assert row["arms"][0]["peak_memory_ledger"] == "profiler"
    assert row["arms"][0]["witness"]["operations"] == 7


def test_an_arm_that_caches_its_answers_is_rejected():
    """A decoding step looked up earlier answers. It was right, computed when it was witnessed, and 24 times faster."""
    machine, seen = Machine(), iter([{"products": {"float32": 1.0}}, {"products": {}}])
    result = machine.measure(
        comparison(machine.arm("control", 0.01)), witness=lambda work: WitnessedCall({}, next(seen))
    )
    assert result.verifications["control"].verdict == "fail"
    assert "remembers answers" in result.verifications["control"].message
    assert not result.seconds


def test_a_subject_that_exits_while_it_is_timed_is_an_error_like_any_other():
    machine = Machine()
    calls = iter(range(60))

    def call():
        machine.now += 0.01
        if next(calls) > 30:
            raise SystemExit(3)

    leaving = Arm("leaves", lambda: Work(call=call, answer=lambda: 42, tokens=1))
    result = machine.measure(comparison(machine.arm("control", 0.01), leaving))
    assert result.verifications["leaves"] == Verification("error", "SystemExit while it was timed: 3")
    assert set(result.seconds) == {"control"}


def test_an_arm_that_did_not_run_what_its_name_says_is_rejected_before_it_is_timed():
    machine = Machine()

    def see(work):
        return WitnessedCall({}, {}, lambda claims: "its attention ran as flash" if claims else None)

    naive = dataclasses.replace(machine.arm("naive", 0.01), claims={"attention": "formula"})
    result = machine.measure(comparison(machine.arm("control", 0.01), naive), witness=see)
    assert result.verifications["naive"] == Verification("fail", "its attention ran as flash")
    assert set(result.seconds) == {"control"}
    assert "naive" not in machine.log


def test_a_witness_that_fails_is_a_note_unless_the_arm_makes_a_claim():
    machine = Machine()

    def see(work):
        raise RuntimeError("no profiler here")

    claiming = dataclasses.replace(machine.arm("b", 0.01), claims={"compiled": True})
    result = machine.measure(comparison(machine.arm("control", 0.01), claiming), witness=see)
    row = result.row()
    assert row["notes"][0] == "memory and witness of control: RuntimeError: no profiler here"
    assert row["arms"][0]["seconds"]
    assert row["arms"][0]["peak_memory_bytes"] is None
    assert result.verifications["b"].verdict == "error", "its claim was not checked"


class FakeCeilings:
    """One ceiling that takes 0.02 s; an arm's fraction is the ceiling's time over its own."""

    def __init__(self, machine):
        self.machine = machine

    def build(self, works):
        return {"gemm float32": self.machine.arm("ceiling", 0.02).build()}

    def fraction(self, work, times, ceilings):
        assert len(times) == len(ceilings["gemm float32"]), "measured in the same rounds"
        fraction = ceilings["gemm float32"][0] / times[0]
        bounds = {"fraction": fraction, "low": fraction, "high": fraction, "impossible": fraction > 1}
        return {"name": "gemm float32", "regime": "compute", **bounds}


def test_every_arm_is_compared_with_ceilings_that_took_turns_with_it():
    machine = Machine()
    row = machine.measure(comparison(machine.arm("control", 0.04)), ceilings=FakeCeilings(machine)).row()
    assert row["arms"][0]["ceiling"]["fraction"] == pytest.approx(0.5)
    assert row["ceilings"][0]["name"] == "gemm float32"
    assert len(row["ceilings"][0]["seconds"]) == FEWEST_SHORT_ROUNDS


@pytest.mark.parametrize(("seconds", "calls"), [(0.04, 3), (2.0, 1)])
def test_a_ceiling_is_the_best_of_as_many_calls_as_an_arm(seconds, calls):
    """If a ceiling had one call and an arm the best of three, noise would lower the ceiling and raise the fraction."""
    machine = Machine()
    machine.measure(comparison(machine.arm("control", seconds)), ceilings=FakeCeilings(machine), seconds=1.0)
    first = machine.log.index("prepare ceiling")
    block = itertools.takewhile(lambda who: who == "ceiling", machine.log[first + 1 :])
    assert len(list(block)) == calls


def test_an_arm_above_its_ceiling_has_no_time():
    machine = Machine()
    arms = machine.arm("control", 0.04), machine.arm("miracle", 0.01)
    result = machine.measure(comparison(*arms), ceilings=FakeCeilings(machine))
    assert result.verifications["miracle"].verdict == "fail"
    assert "200% of the machine's ceiling" in result.verifications["miracle"].message
    assert "miracle" not in result.seconds
    assert "miracle" not in result.ratios


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

    result = machine.measure(comparison(machine.arm("control", 0.5, tokens=100), verify=verify))
    row = json.loads(json.dumps(encode(result.row())))
    assert row["kind"] == "comparison"
    assert row["arms"][0]["tokens_per_second"] == pytest.approx(200)
    assert row["arms"][0]["positions"] == row["arms"][0]["positions_closed_form"] == 109
    assert result.comparison.label == "toy forward, T=8"


def test_a_comparison_without_its_control_is_an_error():
    machine = Machine()
    with pytest.raises(HarnessError, match="include"):
        comparison(machine.arm("a", 1), control="b")
    with pytest.raises(HarnessError, match="distinct"):
        comparison(machine.arm("control", 1), machine.arm("control", 1))
