"""Benchmark runs compared across days and machines, and gates whose error is known."""

import json
import math
import random
from pathlib import Path

import pytest

from harness.bench.statistics import Estimate
from harness.core.errors import HarnessError
from harness.history.benchmark_runs import find_runs, read_run, run_from_rows
from harness.history.change_estimates import BETWEEN_RUNS, change_of_several_runs, ratio_of_change
from harness.history.compare_runs import compare
from harness.history.gates import Gate
from harness.tests.history.benchmark_records import ARMS, comparison, header, record, run


def by_arm(compared):
    return {change.key.arm: change for change in compared.changes}


def test_a_machine_twice_as_fast_changes_nothing_and_does_not_hide_a_slower_arm():
    rng = random.Random(0)
    before = run_from_rows(Path("a"), [header(), comparison(rng, {"naive": 2.0, "flash": 1.0, "naive-again": 2.0})])
    after = run_from_rows(
        Path("b"), [header(), comparison(rng, {"naive": 2.0, "flash": 1.3, "naive-again": 2.0}, machine=0.5)]
    )
    found = compare([before], [after])
    assert set(by_arm(found)) == {"naive", "flash"}, "a twin is not a change"
    assert by_arm(found)["flash"].ratio.verdict == "SLOWER"
    assert by_arm(found)["flash"].ratio.ratio == pytest.approx(1.3, rel=0.02)
    assert by_arm(found)["naive"].ratio.verdict in ("SAME", "UNRESOLVED")
    assert by_arm(found)["naive"].against == "gemm"
    assert [change.against for change in found.twins] == ["naive"]


def test_without_a_common_ceiling_arms_are_compared_with_the_control():
    rng = random.Random(0)
    found = compare([run(rng)], [run(rng, ceilings=("another",))])
    assert set(by_arm(found)) == {"flash"}
    assert by_arm(found)["flash"].against == "naive"
    assert "no yardstick" in str(compare([run(rng)], [run(rng, ceilings=())], against="yardstick").left_out)


def test_the_yardstick_is_the_first_ceiling_that_all_runs_have():
    rng = random.Random(0)
    found = compare([run(rng, ceilings=("one", "read", "launch"))], [run(rng, ceilings=("two", "read", "launch"))])
    assert {change.against for change in found.changes} == {"read"}
    assert found.run_to_run.centre < 2 * BETWEEN_RUNS, "launch to read, not to one and to two"


def test_an_arm_with_other_work_or_without_time_is_left_out_with_the_reason():
    rng = random.Random(0)
    a, b = (comparison(rng, dict.fromkeys(ARMS, 1.0)) for _ in range(2))
    b["arms"][0]["tokens_per_call"] = 256
    b["arms"][1] |= {"seconds": None, "verified": {"verdict": "fail", "message": "wrong"}}
    found = compare([run_from_rows(Path("a"), [header(), a])], [run_from_rows(Path("b"), [header(), b])])
    reasons = {key.arm: reason for key, reason in found.left_out.items()}
    assert "tokens_per_call 256 and 512" in reasons["naive"]
    assert reasons["flash"] == "no time in B: fail: wrong"


def false_alarms(runs, *, effect, tables=400, a=1, b=1, **options):
    rng = random.Random(1)
    gate = Gate.parse("slower:5%")
    flagged = 0
    for _ in range(tables):
        before = [run(rng, points=(1, 2), rounds=12, noise=0.02, **options) for _ in range(a)]
        after = [run(rng, effect, points=(1, 2), rounds=12, noise=0.02, **options) for _ in range(b)]
        flagged += bool(gate.exceeded(compare(before, after).changes))
    return flagged / tables


# The bias of a ratio has that of two times in it. 5% of 400 tables, and three standard errors of that: 8.3%.
@pytest.mark.parametrize(
    "options",
    [
        {"bias": BETWEEN_RUNS / math.sqrt(2)},
        {"bias": 0.1, "ceilings": ("gemm", "read", "launch")},
        {"bias": 0.1, "a": 3, "b": 3},
        {"bias": 0.1, "a": 4, "b": 1},
    ],
    ids=["one quiet run a side", "one run a side on a busy machine", "three runs a side", "a run against four"],
)
def test_the_gate_for_slower_fails_at_most_one_in_twenty_comparisons_at_its_limit(options):
    """All arms are slower by exactly the limit, the worst allowed case; runs differ by more than their rounds."""
    assert false_alarms(run, effect=1.05, **options) <= 0.083


def test_the_gate_for_slower_sees_what_is_well_beyond_its_limit():
    assert false_alarms(run, effect=1.15, tables=20, bias=BETWEEN_RUNS / math.sqrt(2)) == 1.0


def test_runs_that_agree_by_chance_are_known_no_better_than_their_rounds():
    """Three runs a side at the same ratio said 1.12x [1.06, 1.17], where each run alone was known to 18%."""
    alike = [Estimate(0.0, 0.05, 9)] * 3
    found = change_of_several_runs(alike, [Estimate(math.log(1.12), 0.05, 9)] * 3)
    assert found.error == pytest.approx(math.sqrt(6) * 0.05 / 3)
    assert found.freedom == 54
    assert ratio_of_change(found, 10).low < 1.05
    apart = [Estimate(centre, 0.001, 9) for centre in (-0.1, 0.0, 0.1)]
    assert change_of_several_runs(apart, apart) == Estimate(0.0, pytest.approx(math.sqrt(0.01 * 2 / 3)), 4)


def test_ceilings_that_changed_among_themselves_widen_every_interval():
    rng = random.Random(0)
    quiet = compare([run(rng, ceilings=("gemm", "read"))], [run(rng, ceilings=("gemm", "read"))])
    shaken = run(rng, ceilings=("gemm", "read"))
    row = comparison(rng, dict.fromkeys(ARMS, 1.0), ceilings=("gemm", "read"))
    row["ceilings"][1]["seconds"] = [1.4 * second for second in row["ceilings"][1]["seconds"]]
    busy = compare([shaken], [run_from_rows(Path("b"), [header(), row])])
    assert math.sqrt(2) * BETWEEN_RUNS < quiet.run_to_run.centre < 2 * BETWEEN_RUNS
    assert busy.run_to_run.centre == pytest.approx(math.log(1.4), rel=0.1)
    assert busy.changes[0].ratio.half_width > 5 * quiet.changes[0].ratio.half_width


@pytest.mark.parametrize(
    "text", ["slower", "slower:5", "faster:5%", "slower:-3%", "slower:0.5x", "memory:%", "slower:abc%"]
)
def test_a_gate_that_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match=r"is no number|grow|expected"):
        Gate.parse(text)


def test_several_runs_are_named_by_commas_a_folder_or_the_beginning_of_their_time(tmp_path):
    paths = [record(tmp_path, f"2026112{day}T000000Z", []) for day in (0, 1, 2)]
    assert find_runs(str(tmp_path), Path("nowhere")) == paths
    assert find_runs("2026112", tmp_path) == paths
    assert find_runs(f"latest,latest~1,{paths[2]}", tmp_path) == [paths[2], paths[1]]


def test_a_folder_without_benchmark_runs_is_named(tmp_path):
    (tmp_path / "verify-1.jsonl").touch()
    with pytest.raises(HarnessError, match=r"has no bench-\*\.jsonl"):
        find_runs(str(tmp_path), Path("nowhere"))


def test_records_of_verifications_are_no_benchmark_run(tmp_path):
    path = tmp_path / "verify-1.jsonl"
    path.write_text(json.dumps({"kind": "header", "schema": 1, "run": "verify"}) + "\n")
    with pytest.raises(HarnessError, match="expected 'bench'"):
        read_run(path)


def damaged(**fields):
    return {**comparison(random.Random(0), dict.fromkeys(ARMS, 1.0)), **fields}


def with_arm(**fields):
    row = damaged()
    row["arms"][1] |= fields
    return row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        *(
            (with_arm(seconds=wrong), "seconds of flash")
            for wrong in ([1, math.inf], [0], [-1], [True], ["1"], "1", {})
        ),
        *((damaged(ceilings=wrong), "") for wrong in ([{"name": "gemm", "seconds": [0.0]}], [7], {"a": 1})),
        *((damaged(arms=wrong), "") for wrong in (None, [None], [{"seconds": [1]}], {})),
        (with_arm(verified=None), "verified of flash"),
        (with_arm(verified={"verdict": "pass"}), "verified of flash"),
        (with_arm(twin_of=[]), "twin_of of flash"),
        (with_arm(flops="many"), "flops of flash"),
        (with_arm(error=math.nan), "error of flash"),
        (damaged(control=None), "control"),
        (damaged(metric=3), "metric"),
        (damaged(point=[1]), "axis and point"),
        (damaged(load="busy"), "load"),
    ],
)
def test_a_row_that_no_run_writes_is_an_error_with_its_line(row, message):
    with pytest.raises(HarnessError, match=rf"a:2: {message}.*edited or damaged"):
        run_from_rows(Path("a"), [header(), row])


def test_an_environment_that_is_no_object_is_an_error():
    with pytest.raises(HarnessError, match="a:1: environment: expected an object"):
        run_from_rows(Path("a"), [{**header(), "environment": []}])


def test_what_one_side_does_not_have_is_absent():
    rng = random.Random(0)
    found = compare([run(rng, points=(1, 2))], [run(rng, points=(2, 3))])
    assert {side: [key.point for key in keys] for side, keys in found.absent.items()} == {"A": [3] * 3, "B": [1] * 3}
    only = compare([run(rng, points=(1, 2))], [run(rng, points=(2, 3))], words="flash")
    assert [len(keys) for keys in only.absent.values()] == [1, 1]


def test_a_copy_of_a_run_is_no_second_run(tmp_path):
    row = comparison(random.Random(0), dict.fromkeys(ARMS, 1.0))
    paths = [record(tmp_path, stamp, [row]) for stamp in ("1", "2")]
    with pytest.raises(HarnessError, match=r"bench-2\.jsonl is a copy of .*bench-1"):
        compare([read_run(paths[0])], [read_run(paths[1])])


def test_an_arm_that_is_wrong_on_both_sides_is_named():
    rng = random.Random(0)
    wrong = {"seconds": None, "verified": {"verdict": "fail", "message": "nan"}}
    rows = [comparison(rng, dict.fromkeys(ARMS, 1.0)) for _ in range(2)]
    for row in rows:
        row["arms"][1] |= wrong
    found = compare(*([run_from_rows(Path(name), [header(), row])] for name, row in zip("ab", rows, strict=True)))
    assert list(found.left_out.values()) == ["no time in A and B: fail: nan"]
    assert not found.lost
