"""Runs compared across days and machines, gates whose error is known, and going on after Ctrl-C."""

import json
import math
import random
from pathlib import Path

import pytest

from harness import cli
from harness.bench.comparison import LOOKS, Arm, Comparison, Verification, Work, measure
from harness.core.errors import HarnessError
from harness.history.compare_runs import BETWEEN_RUNS, Gate, compare, find_runs, read_run, run_of
from harness.history.resume import covers, fingerprint, resumable

ARMS = ("naive", "flash", "naive-again")


def comparison(rng, factors, *, machine=1.0, noise=0.01, bias=0.0, ceilings=("gemm",), rounds=24, point=512, **fields):
    """A row: arms whose times are `factors` of the machine's, and ceilings of the machine alone.

    `bias` is what the logarithm of each time is off by in all of this run's rounds.
    """

    def times(factor):
        factor *= machine * math.exp(rng.gauss(0, bias))
        return [factor * math.exp(rng.gauss(0, noise)) for _ in range(rounds)]

    return {
        "kind": "comparison", "comparison": "attention", "metric": "forward", "axis": "tokens", "point": point,
        "control": "naive", "size": "124M", "device": "cpu", "threads": 2, "quick": False, "subject": "gpt:GPT",
        "arms": [
            {
                "arm": name, "twin_of": "naive" if name.endswith("-again") else None, "seconds": times(factor),
                "verified": {"verdict": "pass", "message": ""}, "tokens_per_call": 512,
                "peak_memory_bytes": 1000, "error": 1e-6,
            }
            for name, factor in factors.items()
        ],
        "ceilings": [{"name": name, "seconds": times(1.0)} for name in ceilings],
        **fields,
    }  # fmt: skip


def header(cpu="one", **environment):
    return {"kind": "header", "schema": 1, "run": "bench", "environment": {"cpu": cpu, **environment}}


def record(folder, stamp, rows, *, footer=None, cpu="one"):
    path = folder / f"bench-{stamp}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [header(cpu), *rows, *([footer] if footer else [])]))
    return path


def run(rng, factor=1.0, points=(512,), **options):
    factors = dict.fromkeys(ARMS, factor)
    return run_of(Path(f"{rng.random()}"), [header(), *(comparison(rng, factors, point=p, **options) for p in points)])


def by_arm(compared):
    return {change.key.arm: change for change in compared.changes}


def test_a_machine_twice_as_fast_changes_nothing_and_a_slower_arm_is_seen_through_it():
    rng = random.Random(0)
    before = run_of(Path("a"), [header(), comparison(rng, {"naive": 2.0, "flash": 1.0, "naive-again": 2.0})])
    after = run_of(
        Path("b"), [header(), comparison(rng, {"naive": 2.0, "flash": 1.3, "naive-again": 2.0}, machine=0.5)]
    )
    found = compare([before], [after])
    assert set(by_arm(found)) == {"naive", "flash"}, "a twin is no finding"
    assert by_arm(found)["flash"].ratio.verdict == "SLOWER"
    assert by_arm(found)["flash"].ratio.ratio == pytest.approx(1.3, rel=0.02)
    assert by_arm(found)["naive"].ratio.verdict in ("SAME", "UNRESOLVED")
    assert by_arm(found)["naive"].against == "gemm"
    assert [change.against for change in found.twins] == ["naive"]


def test_without_a_common_ceiling_arms_are_held_against_the_control():
    rng = random.Random(0)
    found = compare([run(rng)], [run(rng, ceilings=("another",))])
    assert set(by_arm(found)) == {"flash"}
    assert by_arm(found)["flash"].against == "naive"
    assert "no yardstick" in str(compare([run(rng)], [run(rng, ceilings=())], against="yardstick").left_out)


def test_the_yardstick_is_the_first_ceiling_that_all_runs_have():
    rng = random.Random(0)
    found = compare([run(rng, ceilings=("one", "read", "launch"))], [run(rng, ceilings=("two", "read", "launch"))])
    assert {change.against for change in found.changes} == {"read"}
    assert found.between.centre < 2 * BETWEEN_RUNS, "launch to read, not to one and to two"


def test_what_is_not_the_same_work_or_has_no_time_is_left_out_and_named():
    rng = random.Random(0)
    a, b = (comparison(rng, dict.fromkeys(ARMS, 1.0)) for _ in range(2))
    b["arms"][0]["tokens_per_call"] = 256
    b["arms"][1] |= {"seconds": None, "verified": {"verdict": "fail", "message": "wrong"}}
    found = compare([run_of(Path("a"), [header(), a])], [run_of(Path("b"), [header(), b])])
    told = {key.arm: why for key, why in found.left_out.items()}
    assert "tokens_per_call 256 and 512" in told["naive"]
    assert told["flash"] == "no time in B: fail: wrong"


def false_alarms(runs, *, effect, tables=400, a=1, b=1, **options):
    rng = random.Random(1)
    gate = Gate.read("slower:5%")
    flagged = 0
    for _ in range(tables):
        before = [run(rng, points=(1, 2), rounds=12, noise=0.02, **options) for _ in range(a)]
        after = [run(rng, effect, points=(1, 2), rounds=12, noise=0.02, **options) for _ in range(b)]
        flagged += bool(gate.breached(compare(before, after).changes))
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
    """All arms are slower by the limit exactly, the worst that is no breach; runs differ by more than their rounds."""
    assert false_alarms(run, effect=1.05, **options) <= 0.083


def test_the_gate_for_slower_sees_what_is_well_beyond_its_limit():
    assert false_alarms(run, effect=1.15, tables=20, bias=BETWEEN_RUNS / math.sqrt(2)) == 1.0


def test_ceilings_that_changed_among_themselves_widen_every_interval():
    rng = random.Random(0)
    quiet = compare([run(rng, ceilings=("gemm", "read"))], [run(rng, ceilings=("gemm", "read"))])
    shaken = run(rng, ceilings=("gemm", "read"))
    row = comparison(rng, dict.fromkeys(ARMS, 1.0), ceilings=("gemm", "read"))
    row["ceilings"][1]["seconds"] = [1.4 * second for second in row["ceilings"][1]["seconds"]]
    busy = compare([shaken], [run_of(Path("b"), [header(), row])])
    assert math.sqrt(2) * BETWEEN_RUNS < quiet.between.centre < 2 * BETWEEN_RUNS
    assert busy.between.centre == pytest.approx(math.log(1.4), rel=0.1)
    assert busy.changes[0].ratio.half_width > 5 * quiet.changes[0].ratio.half_width


@pytest.mark.parametrize("text", ["slower", "slower:5", "faster:5%", "slower:-3%", "slower:0.5x", "memory:%"])
def test_a_gate_that_cannot_be_meant_is_refused(text):
    with pytest.raises(ValueError, match=r"slower|could not convert|grow|expected"):
        Gate.read(text)


# The command.


@pytest.fixture
def gpt_harness(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports" / "records").mkdir(parents=True)

    def run(*arguments):
        try:
            status = cli.main(arguments)
        except SystemExit as exit:
            status = exit.code
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return run


def two_runs(folder, *, factor=1.0, cpu="one", **fields):
    rng = random.Random(0)
    records = folder / "reports" / "records"
    record(records, "20261120T000000Z", [comparison(rng, dict.fromkeys(ARMS, 1.0))])
    row = comparison(rng, {"naive": 1.0, "flash": factor, "naive-again": 1.0}, **fields)
    return record(records, "20261121T000000Z", [row], cpu=cpu)


def test_compare_prints_the_table_and_a_met_gate_is_exit_status_1(gpt_harness, tmp_path):
    two_runs(tmp_path, factor=1.4, cpu="another")
    status, told = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:5%", "--output", "table.csv")
    assert status == 1
    assert "1.40x slower" in told
    assert "--fail-if slower:5%: FAILED by attention forward, tokens=512: flash" in told
    assert "at most 5% fail" in told
    assert "cpu differs: one in A, another in B" in told
    assert "1 pairs of identical arms, 0 called changed" in told
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3


def test_a_gate_that_is_not_met_is_exit_status_0_and_k_chooses(gpt_harness, tmp_path):
    two_runs(tmp_path, factor=1.4)
    status, told = gpt_harness("compare", "20261120", "20261121", "-k", "naive", "--fail-if", "slower:5%")
    assert status == 0
    assert "flash" not in told


def test_memory_is_gated_without_statistics(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    path.write_text(path.read_text().replace('"peak_memory_bytes": 1000', '"peak_memory_bytes": 1051'))
    assert gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:6%")[0] == 0
    status, told = gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:5%", "--fail-if", "error:2x")
    assert status == 1
    assert "--fail-if memory:5%: FAILED by attention forward, tokens=512: naive 1.05x" in told
    assert "--fail-if error:100%: passed" in told


@pytest.mark.parametrize(("verdict", "status"), [("fail", 1), ("error", 1), ("skip", 0)])
def test_an_arm_that_is_wrong_now_fails_the_gate_and_one_that_is_not_here_does_not(
    gpt_harness, tmp_path, verdict, status
):
    path = two_runs(tmp_path)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    row["arms"][1] |= {"seconds": None, "verified": {"verdict": verdict, "message": "because"}}
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]))
    found, told = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:50%")
    assert found == status, told
    assert ("tokens=512: flash (no time in B: " in told) is bool(status)
    assert gpt_harness("compare", "latest~1", "latest")[0] == 0, "without a gate nothing fails"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("latest~7", "latest"), "'latest~7' is no file and no run"),
        (("latest", "latest"), "is on both sides"),
        (("latest~1", "latest", "-k", "flush"), "did you mean 'flash'?"),
        (("latest~1", "latest", "--fail-if", "slower"), "expected slower:5%"),
    ],
)
def test_a_mistake_of_the_users_is_one_line_and_exit_status_2(gpt_harness, tmp_path, arguments, told):
    two_runs(tmp_path)
    status, printed = gpt_harness("compare", *arguments)
    assert status == 2
    assert told in printed
    assert "Traceback" not in printed


def test_runs_of_different_sizes_have_nothing_in_common_and_it_is_said(gpt_harness, tmp_path):
    two_runs(tmp_path, size="355M")
    status, told = gpt_harness("compare", "latest~1", "latest")
    assert status == 2
    assert "A has attention at 124M, B has attention at 355M" in told


def test_other_work_on_the_machine_is_told(gpt_harness, tmp_path):
    two_runs(tmp_path, load=8.0)
    told = gpt_harness("compare", "latest~1", "latest")[1]
    assert "Other work was going on in B (a load of 6.0 besides its own)" in told
    assert "going on in A" not in told


def test_several_runs_are_named_by_commas_a_folder_or_the_beginning_of_their_time(tmp_path):
    paths = [record(tmp_path, f"2026112{day}T000000Z", []) for day in (0, 1, 2)]
    assert find_runs(str(tmp_path), Path("nowhere")) == paths
    assert find_runs("2026112", tmp_path) == paths
    assert find_runs(f"latest,latest~1,{paths[2]}", tmp_path) == [paths[2], paths[1]]


def test_a_gate_that_judged_nothing_does_not_pass(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    path.write_text(path.read_text().replace('"peak_memory_bytes": 1000', '"peak_memory_bytes": null'))
    status, told = gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:5%")
    assert status == 2
    assert "it would always pass" in told


def test_records_of_verifications_are_no_benchmark_run(tmp_path):
    path = tmp_path / "verify-1.jsonl"
    path.write_text(json.dumps({"kind": "header", "schema": 1, "run": "verify"}) + "\n")
    with pytest.raises(HarnessError, match="expected 'bench'"):
        read_run(path)


# Going on.


def rows_of(points, mark="x"):
    return [comparison(random.Random(0), dict.fromkeys(ARMS, 1.0), point=p, fingerprint=mark, rounds=4) for p in points]


def test_the_next_run_goes_on_with_what_interrupted_ones_have_measured(tmp_path):
    record(tmp_path, "20261120T000000Z", rows_of([128]), footer={"kind": "footer", "complete": True})
    record(tmp_path, "20261121T000000Z", rows_of([256, 512]), footer={"kind": "footer", "complete": False})
    torn = record(tmp_path, "20261122T000000Z", rows_of([512, 1024]))
    torn.write_text(torn.read_text() + '{"kind": "comparison", "compar')
    record(tmp_path, "20261123T000000Z", rows_of([2048], mark="another"), footer={"kind": "footer", "complete": True})
    found = {row["point"]: row["resumed_from"] for row in resumable(tmp_path, "x")}
    assert found == {
        512: "bench-20261122T000000Z.jsonl", 1024: "bench-20261122T000000Z.jsonl", 256: "bench-20261121T000000Z.jsonl"
    }  # fmt: skip


def test_after_a_complete_run_everything_is_measured_anew(tmp_path):
    record(tmp_path, "20261120T000000Z", rows_of([128]))
    record(tmp_path, "20261121T000000Z", rows_of([128]), footer={"kind": "footer", "complete": True})
    assert resumable(tmp_path, "x") == []


def test_a_row_covers_the_arms_that_it_has():
    row = rows_of([128])[0]
    assert covers(row, ["naive", "flash"])
    assert not covers(row, ["naive", "looped"])


def test_a_changed_character_of_the_subject_or_another_setting_is_another_fingerprint(tmp_path):
    subject = tmp_path / "mine.py"
    subject.write_text("x = 1\n")
    of = {"environment": {"cpu": "one"}, "settings": {"size": "debug"}}
    first = fingerprint(f"{subject}:GPT", **of)
    assert first == fingerprint(f"{subject}:GPT", **of)
    subject.write_text("x = 2\n")
    second = fingerprint(f"{subject}:GPT", **of)
    other = fingerprint(f"{subject}:GPT", environment={"cpu": "one"}, settings={"size": "124M"})
    assert len({first, second, other, fingerprint("gpt:GPT", **of)}) == 4


# Files of bounded size.


def test_a_row_has_no_more_rounds_than_the_last_look_however_long_it_may_take():
    """pytest-benchmark's file holds one number a round: a million cheap calls must not become a million numbers."""
    rng, now = random.Random(0), [0.0]

    def call():
        now[0] += 1e-5 * rng.uniform(1, 5)

    def build():
        return Work(call=call, answer=lambda: None, tokens=1)

    noisy = Comparison(
        "c", "t", "m", "a", (Arm("a", build), Arm("b", build)), lambda name, work: Verification("pass", "")
    )
    measured = measure(noisy, seconds=1e9, clock=lambda: now[0])
    assert {len(times) for times in measured.seconds.values()} <= set(LOOKS)
    assert LOOKS[-1] <= 96
    assert len(json.dumps(measured.row())) < 20_000
