"""`pytest benchmarks/`: its rows are the measured times, its options work, and no measurement is lost."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.replay import CLOCK, UnverifiedError, refuse, replay
from benchmarks.show import peaks
from harness.bench.arms import work_kinds

work_kinds()  # here: pytester removes modules that are imported while it runs, but arms must be registered once
ROOT = Path(__file__).parents[3]
MIB = 2**20


def test_ledgers_that_disagree_are_shown_side_by_side():
    assert peaks({"profiler": 99 * MIB, "closed form": 99 * MIB, "child process": 98 * MIB}) == "peak 99 MiB"
    output = peaks({"profiler": 99 * MIB, "closed form": 50 * MIB})
    assert output.startswith("peak 99 MiB (")
    assert "closed form 50.00 MiB" in output


class FakeBenchmark:
    """Calls a target as pytest-benchmark's pedantic mode does."""

    def __init__(self):
        self.rounds, self.extra_info, self.has_error = [], {}, False

    def pedantic(self, target, setup=lambda: None, rounds=1, iterations=1):
        for _ in range(rounds):
            setup()
            start = CLOCK()
            target()
            self.rounds.append(CLOCK() - start)


def test_a_replayed_round_lasts_exactly_as_long_as_measured():
    seconds = [0.1, 0.2, 0.3, 1e-7, 1e3]
    benchmark = FakeBenchmark()
    replay(benchmark, seconds, {"tokens_per_second": 3.0})
    assert benchmark.rounds == seconds
    assert benchmark.extra_info == {"tokens_per_second": 3.0}


def test_a_rejected_arm_leaves_no_round():
    benchmark = FakeBenchmark()
    with pytest.raises(UnverifiedError, match="wrong"):
        refuse(benchmark, "wrong")
    assert benchmark.rounds == []


# Whole runs at the debug size.


@pytest.fixture
def run_benchmarks(pytester):
    """Return a function that runs `pytest benchmarks/...` at the debug size, and returns the status and the output."""

    def run(*arguments):
        arguments = [str(ROOT / word) if str(word).startswith("benchmarks/") else word for word in arguments]
        result = pytester.runpytest_inprocess(
            *("-p", "no:cacheprovider", "--size", "debug", "--quick", "--budget", "1"),
            *("--reports", "reports", "--benchmark-storage", "storage", "-c", ROOT / "pyproject.toml"),
            *arguments,
            no_reraise_ctrlc=True,
        )
        return result.ret, result.stdout.str() + result.stderr.str()

    return run


def records(folder):
    rows = []
    for path in sorted((folder / "reports" / "records").glob("bench-*.jsonl")):
        rows += map(json.loads, path.read_text(encoding="utf-8").splitlines())
    return rows


def comparisons(folder):
    return {(row["comparison"], row["metric"]): row for row in records(folder) if row["kind"] == "comparison"}


def test_rows_are_the_recorded_block_minima_and_can_be_saved_and_compared(run_benchmarks, pytester):
    status, output = run_benchmarks(
        *("benchmarks/", "-k", "precision-decode", "--benchmark-autosave", "--benchmark-json=out.json")
    )
    assert status == 0, output
    assert records(pytester.path)[0]["environment"]["huge_pages"] == "1"
    recorded = {arm["arm"]: arm for arm in comparisons(pytester.path)["precision", "decode"]["arms"]}
    packed = {"fp32-packed", "bf16-packed"}
    assert set(recorded) == {"fp32", "bf16", "bf16-autocast", "int8", "int4", "fp32-again", *packed}
    assert all(arm["error"] <= arm["allowed"] for arm in recorded.values())
    assert recorded["int4"]["extras"]["weights_bytes"] < recorded["bf16"]["extras"]["weights_bytes"]
    assert recorded["bf16"]["description"] == "parameters and products in bfloat16"
    decode = comparisons(pytester.path)["precision", "decode"]
    assert decode["parameters"] == 96_576
    assert decode["why"].startswith("One row at a time reads every weight once")
    saved = json.loads((pytester.path / "out.json").read_text())["benchmarks"]
    assert {row["params"]["arm"] for row in saved} == set(recorded)
    for row in saved:
        arm = recorded[row["params"]["arm"]]
        assert row["stats"]["data"] == arm["seconds"], "to the last bit"
        assert row["stats"]["median"] == arm["median_seconds"]
        assert row["extra_info"]["tokens_per_second"] == arm["tokens_per_second"]
        assert row["extra_info"]["verified"] == arm["verified"]["message"]
    assert len(list((pytester.path / "storage").rglob("*.json"))) == 1

    # The second run selects one arm: its control is measured too, and its twin, because there is no other A/A pair.
    status, output = run_benchmarks(
        *(
            "benchmarks/",
            "-k",
            "precision-decode-bf16 and not (autocast or packed)",
            "--benchmark-compare",
            "--resolve",
            "40%",
        )
    )
    assert status == 0, output
    assert "NOW" in output
    assert re.search(r"^  bf16 .* error \d\.\de-0\d", output, re.MULTILINE), "the error stands beside the time"
    assert not re.search(r"^  fp32 .* error ", output, re.MULTILINE)
    assert "1 pairs of identical arms" in output
    decode = comparisons(pytester.path)["precision", "decode"]
    assert decode["effect"] == 0.4
    assert [arm["arm"] for arm in decode["arms"]] == ["fp32", "bf16", "fp32-again"]


WRONG = '''
from gpt import GPT, GPTConfig

class Wrong(GPT):
    """Looped attention is 10% too large, bf16 is computed in float32, and the cache is never used."""

    def __init__(self, config: GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)
        if config.attention == "looped":
            for block in self.transformer["h"]:
                right = block.attn.forward
                block.attn.forward = lambda x, memory=None, right=right: 1.1 * right(x, memory)

    def to(self, dtype):
        return self if str(dtype) == "torch.bfloat16" else super().to(dtype)

    def generate(self, idx, max_new_tokens, *, temperature=1.0, use_cache=True):
        return super().generate(idx, max_new_tokens, temperature=temperature, use_cache=False)
'''


def test_wrong_arms_turn_red_and_have_no_time_anywhere(run_benchmarks, pytester):
    subject = pytester.makepyfile(mine=WRONG)
    status, output = run_benchmarks(
        *("benchmarks/", "--subject", f"{subject}:Wrong", "--benchmark-json=out.json"),
        *("-k", "attention-layer or generation-generate or (precision-decode and not (autocast or int or packed))"),
    )
    assert status == 1, output
    found = comparisons(pytester.path)
    for comparison, metric, arm, why in (
        ("attention", "layer", "looped", "so rounding allows"),
        ("precision", "decode", "bf16", "float32"),
        ("generation", "generate", "cached", "does not do what its name says"),
    ):
        row = next(row for row in found[comparison, metric]["arms"] if row["arm"] == arm)
        assert row["verified"]["verdict"] == "fail"
        assert why in row["verified"]["message"]
        assert row["seconds"] is row["median_seconds"] is row["tokens_per_second"] is None
    shown = {row["params"]["arm"] for row in json.loads((pytester.path / "out.json").read_text())["benchmarks"]}
    assert shown == {"naive", "naive-again", "flash", "fp32", "fp32-again", "uncached", "uncached-again"}
    assert output.count("unverified, so no time is shown") >= 3


def test_under_xdist_every_arm_is_skipped_with_the_reason(run_benchmarks, pytester):
    pytest.importorskip("xdist")
    status, output = run_benchmarks("benchmarks/", "-k", "generation", "-n", "1", "-rs")
    assert status == 0, output
    assert "off under xdist" in output
    assert not records(pytester.path)


def test_with_benchmarking_disabled_nothing_is_measured(run_benchmarks, pytester):
    status, output = run_benchmarks("benchmarks/", "-k", "generation", "--benchmark-disable", "-rs")
    assert status == 0, output
    assert "--benchmark-disable" in output
    assert not records(pytester.path)


INTERRUPTED = '''
from gpt import GPT, GPTConfig

class Interrupted(GPT):
    """As if Ctrl-C was pressed during the second comparison."""

    def __init__(self, config: GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)

    def generate(self, idx, max_new_tokens, *, temperature=1.0, use_cache=True):
        raise KeyboardInterrupt
'''


def test_ctrl_c_keeps_the_comparisons_that_are_done(run_benchmarks, pytester):
    subject = pytester.makepyfile(mine=INTERRUPTED)
    status, output = run_benchmarks(
        *("benchmarks/", "--subject", f"{subject}:Interrupted", "-k", "(attention-layer and not 1024) or generate"),
    )
    assert status == pytest.ExitCode.INTERRUPTED, output
    assert set(comparisons(pytester.path)) == {("attention", "layer")}
    assert records(pytester.path)[-1]["complete"] is False


ONCE = """
from pathlib import Path

from gpt import GPT, GPTConfig

class Once(GPT):
    def __init__(self, config: GPTConfig, *, seed=None, device=None):
        super().__init__(config, seed=seed, device=device)

    def generate(self, idx, max_new_tokens, *, temperature=1.0, use_cache=True):
        if not Path("go").exists():
            raise KeyboardInterrupt
        return super().generate(idx, max_new_tokens, temperature=temperature, use_cache=use_cache)
"""


def test_an_interrupted_run_resumes(run_benchmarks, pytester):
    subject = pytester.makepyfile(mine=ONCE)
    arguments = ("benchmarks/", "--subject", f"{subject}:Once", "-k", "(attention-layer and not 1024) or generate")
    run_benchmarks(*arguments)
    before = comparisons(pytester.path)["attention", "layer"]
    (pytester.path / "go").write_text("")
    status, output = run_benchmarks(*arguments)
    assert status == 0, output
    assert "from the interrupted run" in output
    rows = [row for row in records(pytester.path) if row.get("comparison") == "attention"]
    assert [row["arms"] for row in rows] == [before["arms"]] * 2
    status, output = run_benchmarks(*arguments)
    assert "from the interrupted run" not in output, "a complete run is not resumed"


def test_a_subject_without_an_ability_is_a_skip_that_names_it(run_benchmarks, pytester):
    subject = pytester.makepyfile(
        mine="""
        from gpt import GPT, GPTConfig

        class Silent(GPT):
            generate = None

            def __init__(self, config: GPTConfig, *, seed=None, device=None):
                super().__init__(config, seed=seed, device=device)
        """
    )
    status, output = run_benchmarks("benchmarks/", "-k", "generation", "--subject", f"{subject}:Silent", "-rs")
    assert status == 0, output
    assert "has no ability 'Generates'" in output


def test_ctrl_c_while_the_report_is_written_names_the_command_that_writes_it(run_benchmarks, pytester, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("harness.report.write_latest", interrupted)
    status, output = run_benchmarks("benchmarks/", "-k", "attention-layer and not 1024")
    assert status == pytest.ExitCode.INTERRUPTED
    assert "the report was not written (Ctrl-C): `gpt-harness report` makes it" in output
    assert "Traceback" not in output
    assert records(pytester.path)[-1]["kind"] == "footer"


def test_a_word_that_selects_nothing_gets_a_suggestion(run_benchmarks):
    status, output = run_benchmarks("benchmarks/", "-k", "flush")
    assert status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "-k 'flush' selects no arm; did you mean 'flash'? --collect-only lists all of them" in output


def test_a_comparison_that_quick_leaves_out_is_named(run_benchmarks):
    status, output = run_benchmarks("benchmarks/", "-k", "parallel")
    assert status == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "-k 'parallel' selects no arm: --quick leaves out parallel step" in output


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (("--budget", "-3"), "argument --budget"),
        (("--device", "toaster"), "--device toaster"),
        (("--size", "125M"), "invalid choice"),
    ],
)
def test_a_wrong_option_is_one_clear_line(run_benchmarks, option, message):
    status, output = run_benchmarks("benchmarks/", "--collect-only", *option)
    assert status == pytest.ExitCode.USAGE_ERROR
    assert message in output
    assert "Traceback" not in output


FORKS = """
import os
import gpt
from gpt import GPTConfig

class GPT(gpt.GPT):
    forked = []

    def forward(self, *arguments, **options):
        if not self.forked:
            self.forked.append(os.fork())
        return super().forward(*arguments, **options)
"""


def test_a_process_that_a_subject_forks_does_not_go_on_with_the_run(pytester, monkeypatch):
    """It measured, recorded and printed everything a second time, beside the run that it was forked from."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with more threads the child hangs in OpenMP
    pytester.makepyfile(forks=FORKS)
    result = pytester.runpytest_subprocess(
        *(ROOT / "benchmarks", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", "--reports", "reports"),
        *("--size", "debug", "--quick", "--budget", "1", "-k", "peers and subject", "--subject", "forks.py:GPT"),
    )
    assert result.ret == 0
    assert result.stdout.str().count("1 passed") == 1
    assert [row["kind"] for row in records(pytester.path)] == ["header", "comparison", "footer"]


def test_an_arm_that_would_end_the_process_costs_no_other_arm(run_benchmarks, pytester):
    pytester.makepyfile(ends=FORKS.replace("self.forked.append(os.fork())", "os._exit(0)"))
    status, output = run_benchmarks("benchmarks/", "-k", "peers and (subject or eager)", "--subject", "ends.py:GPT")
    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in output
    assert "os._exit(0) would have ended the process" in output


FULL_DISK = """
from harness.core.record_files import RecordWriter

def full(self, row):
    raise OSError(28, "No space left on device")

RecordWriter._write = full
"""


def test_a_full_disk_costs_no_times(pytester):
    """Each arm failed with a traceback, after the comparison was measured once more for it."""
    pytester.makepyfile(full=FULL_DISK)
    result = pytester.runpytest_subprocess(
        *(ROOT / "benchmarks", "-c", ROOT / "pyproject.toml", "-p", "no:cacheprovider", "-p", "full"),
        *("--reports", "reports", "--size", "debug", "--quick", "--budget", "1", "-k", "experts"),
    )
    result.assert_outcomes(passed=4)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["experts layer, tokens=32 *", "a record was not written: *No space left on device*"])
    assert result.stdout.str().count("experts layer, tokens=32 (") == 1
