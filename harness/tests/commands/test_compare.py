"""`gpt-harness compare`: the table, its limits, the gates and the exit status."""

import json
import random

import pytest

from harness import cli
from harness.tests.history.benchmark_records import ARMS, comparison, record


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
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:5%", "--output", "table.csv")
    assert status == 1
    assert "1.40x slower" in output
    assert "--fail-if slower:5%: FAILED by attention forward, tokens=512: flash" in output
    assert "at most 5% fail" in output
    assert "cpu differs: one in A, another in B" in output
    assert "1 pair of identical arms, 0 called changed" in output
    assert len((tmp_path / "table.csv").read_text().splitlines()) == 3


def test_a_gate_that_is_not_met_is_exit_status_0_and_k_chooses(gpt_harness, tmp_path):
    two_runs(tmp_path, factor=1.4)
    status, output = gpt_harness("compare", "20261120", "20261121", "-k", "naive", "--fail-if", "slower:5%")
    assert status == 0
    assert "flash" not in output


def test_memory_is_gated_without_statistics(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    path.write_text(path.read_text().replace('"peak_memory_bytes": 1000', '"peak_memory_bytes": 1051'))
    assert gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:6%")[0] == 0
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:5%", "--fail-if", "error:2x")
    assert status == 1
    assert "--fail-if memory:5%: FAILED by attention forward, tokens=512: naive 1.05x" in output
    assert "--fail-if error:100%: passed" in output


@pytest.mark.parametrize(("verdict", "status"), [("fail", 1), ("error", 1), ("skip", 0)])
def test_an_arm_that_is_wrong_now_fails_the_gate_and_one_that_is_not_here_does_not(
    gpt_harness, tmp_path, verdict, status
):
    path = two_runs(tmp_path)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    row["arms"][1] |= {"seconds": None, "verified": {"verdict": verdict, "message": "because\x1b\n::stop"}}
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]))
    found, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:50%")
    assert found == status, output
    assert ("tokens=512: flash (no time in B: " in output) is bool(status)
    assert "\n::stop" not in output, "GitHub obeys such a line"
    assert "\x1b" not in output
    assert gpt_harness("compare", "latest~1", "latest")[0] == 0, "without a gate nothing fails"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("latest~7", "latest"), "'latest~7' is neither a file nor a run"),
        (("latest", "latest"), "is on both sides"),
        (("latest~1", "latest", "-k", "flush"), "did you mean 'flash'?"),
        (("latest~1", "latest", "--fail-if", "slower"), "expected slower:5%"),
        (("latest~1", "latest", "--fail-if", "slower:abc%"), "'abc' is no number"),
    ],
)
def test_a_mistake_of_the_users_is_one_line_and_exit_status_2(gpt_harness, tmp_path, arguments, message):
    two_runs(tmp_path)
    status, printed = gpt_harness("compare", *arguments)
    assert status == 2
    assert message in printed
    assert "Traceback" not in printed


def test_runs_of_different_sizes_have_nothing_in_common_and_the_error_says_so(gpt_harness, tmp_path):
    two_runs(tmp_path, size="355M")
    status, output = gpt_harness("compare", "latest~1", "latest")
    assert status == 2
    assert "A has attention at 124M, B has attention at 355M" in output


def test_other_work_on_the_machine_is_reported(gpt_harness, tmp_path):
    two_runs(tmp_path, load=8.0)
    output = gpt_harness("compare", "latest~1", "latest")[1]
    assert "Other processes were running in B (a load of 6.0 besides its own)" in output
    assert "running in A" not in output


def test_a_gate_that_judged_nothing_does_not_pass(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    path.write_text(path.read_text().replace('"peak_memory_bytes": 1000', '"peak_memory_bytes": null'))
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "memory:5%")
    assert status == 2
    assert "it would always pass" in output


def test_a_gate_fails_where_every_arm_has_lost_its_time(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    lines = path.read_text().splitlines()
    row = json.loads(lines[1])
    for arm in row["arms"]:
        arm |= {"seconds": None, "verified": {"verdict": "fail", "message": "because"}}
    path.write_text("\n".join([lines[0], json.dumps(row), *lines[2:]]))
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:5%")
    assert status == 1
    assert "FAILED by arms with a time in A and none in B: attention forward, tokens=512: naive" in output
    assert "always pass" not in output


def test_a_run_that_ended_early_passes_no_gate(gpt_harness, tmp_path):
    path = two_runs(tmp_path)
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:50%")
    assert status == 1
    assert "bench-20261121T000000Z (B) ended early" in output
    assert "--fail-if: FAILED because bench-20261121T000000Z ended early" in output
    assert gpt_harness("compare", "latest~1", "latest")[0] == 0, "without a gate nothing fails"


def test_what_b_does_not_have_is_named(gpt_harness, tmp_path):
    rng = random.Random(0)
    rows = [comparison(rng, dict.fromkeys(ARMS, 1.0), point=point) for point in (1, 2)]
    records = tmp_path / "reports" / "records"
    record(records, "1", rows)
    record(records, "2", [comparison(rng, dict.fromkeys(ARMS, 1.0), point=1)])
    output = gpt_harness("compare", "latest~1", "latest")[1]
    assert "not compared: absent in B: attention forward (3 arms)" in output
    assert "absent in A" not in output


def test_arms_that_only_a_control_measures_say_what_is_not_seen(gpt_harness, tmp_path):
    two_runs(tmp_path)
    assert "alike" not in gpt_harness("compare", "latest~1", "latest")[1]
    output = gpt_harness("compare", "latest~1", "latest", "--against", "control")[1]
    assert "Arms are compared with naive, the control: a change of all arms and the control alike is not seen" in output


def test_a_run_that_is_no_evidence_and_identical_arms_that_changed_are_reported(gpt_harness, tmp_path):
    rng = random.Random(0)
    records = tmp_path / "reports" / "records"
    record(records, "1", [comparison(rng, dict.fromkeys(ARMS, 1.0))])
    alarms = {"pairs": 3, "flagged": 2, "evidence": False}
    row = comparison(rng, {"naive": 1.0, "flash": 1.0, "naive-again": 1.5})
    record(records, "2", [row], footer={"kind": "footer", "complete": True, "false_alarms": alarms})
    output = gpt_harness("compare", "latest~1", "latest")[1]
    assert "bench-2 (B) is no evidence: it called 2 of 3 pairs of identical arms different." in output
    assert "1 pair of identical arms, 1 called changed: so may an arm above be that has not changed." in output


def test_arms_that_a_gate_cannot_decide_are_counted(gpt_harness, tmp_path):
    two_runs(tmp_path, noise=0.3)
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:5%")
    assert status == 0
    assert "passed (2 arms judged, 2 of them undecided: their intervals reach beyond the limit" in output
    assert "undecided" not in gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:200%")[1]


def test_in_a_step_of_a_workflow_the_table_is_on_its_page_and_what_fails_is_annotated(
    gpt_harness, tmp_path, monkeypatch
):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    two_runs(tmp_path, factor=1.4)
    status, output = gpt_harness("compare", "latest~1", "latest", "--fail-if", "slower:5%")
    assert status == 1
    assert "::error title=gpt-harness compare::--fail-if slower:5%25: FAILED by attention forward" in output
    text = (tmp_path / "summary.md").read_text()
    assert text.startswith("## Benchmarks compared\n\n~~~\nA  bench-20261120T000000Z")
    assert "FAILED by attention forward, tokens=512: flash 1.40x slower" in text
    assert text.endswith("~~~\n")
