"""Claims by the records of other runs: what is read, what another record makes of it, and what is missing without."""

import pytest

from harness.core.errors import MissingResource
from harness.core.originals import ORIGINALS
from harness.core.record_files import read
from harness.core.resources import Resources
from harness.judging.run_check import run
from harness.lessons.lesson_file import LessonRun, read_lessons
from harness.lessons.run_row import run_row
from harness.lessons.training_log import TrainingLog
from harness.measures.claims import run_records
from harness.measures.claims.run_records import newest_run
from harness.subjects.adapters import adapt
from harness.tests.measures.claims.sample_runs import bench_rows, full_size_rows, lesson_row, lesson_rows, save

# What the made-up runs show of each claim.
BY_LESSONS = {
    "run-starts-at-a-uniform-guess": "holds",
    "warm-up-share": "holds",
    "peak-rate": "holds",
    "betas-of-adamw": "holds",
    "weight-decay": "holds",
    "constant-rate-explodes": "does not hold",
    "small-rate-is-slow": "holds",
    "cosine-beats-a-constant-rate": "holds",
    "usual-norms": "holds",
    "spike-of-12-3": "holds",
    "spike-is-clipped": "holds",
    "spike-keeps-its-direction": "holds",
    "run-loses-updates-in-bfloat16": "holds",
    "run-keeps-updates-with-masters": "holds",
    "masters-end-lower": "holds",
    "training-and-validation-part": "holds",
    "text-of-a-random-model": "holds",
    "text-of-common-words": "holds",
}
AT_FULL_SIZE = {
    "constant-rate-explodes-near-step-300": "holds",
    "small-rate-reaches-4-3": "holds",
    "cosine-reaches-2-0": "holds",
}
BY_BENCH = {"flash-is-faster": "holds", "torch-compile": "holds"}


@pytest.fixture
def judge(shipped, tmp_path, monkeypatch):
    """Return a function that judges a claim by the records in the test's folder."""
    monkeypatch.setattr(Resources, "current", Resources(records=str(tmp_path / "records")))
    subject = adapt("gpt:GPT", own=False)
    return lambda name: run(shipped[f"claims::{name}"], subject)


def with_lessons(tmp_path, change=lambda row: row, *more):
    save(tmp_path, "lessons", [*(change(row) for row in [*lesson_rows(), *more])], subject="gpt.train")


def test_every_claim_of_the_lessons_runs_is_judged_by_them(shipped, judge, tmp_path):
    with_lessons(tmp_path, lambda row: row, *full_size_rows())
    by_lessons = {check.name for check in shipped.values() if check.claim is not None and check.claim.by == "lessons"}
    assert by_lessons == {*BY_LESSONS, *AT_FULL_SIZE}
    found = {name: judge(name) for name in by_lessons}
    # At GPT-2's size the constant rate explodes, which counts instead of the small model that does not.
    expected = BY_LESSONS | AT_FULL_SIZE | {"constant-rate-explodes": "holds"}
    assert {name: record.value for name, record in found.items()} == expected
    assert {record.verdict for record in found.values()} == {"pass"}


def test_a_reading_names_the_run_its_machine_its_model_and_its_spread(judge, tmp_path):
    with_lessons(tmp_path)
    details = judge("small-rate-is-slow").details["readings"][0]["details"]
    assert details["run"]["file"] == "lessons-20261127T100000Z.jsonl"
    assert details["run"]["machine"] == "Intel(R) Xeon(R) Processor @ 2.10GHz, 2 cores"
    assert (details["about"]["parameters"], details["about"]["runs"]) == (345_000, 3)
    assert details["spread"] == {"low": pytest.approx(1.28), "high": pytest.approx(1.3), "over": "3 runs"}


# The claim, the field of its runs that is changed, its new value, and what is found then.
CHANGES = {
    "run-starts-at-a-uniform-guess": ("first_loss", 3.0),
    "warm-up-share": ("curve", [[step, 4.2, 6e-4 * min(1.0, (step + 1) / 200), 0.7] for step in range(0, 1000, 10)]),
    "peak-rate": ("curve", [[0, 4.2, 1e-3, 0.7]]),
    "betas-of-adamw": ("settings", {"beta1": 0.9, "beta2": 0.999}),
    "weight-decay": ("settings", {"weight_decay": 0.01}),
    "small-rate-is-slow": ("last_loss", 2.0),
    "cosine-beats-a-constant-rate": ("best_validation", 2.1),
    "usual-norms": ("curve", [[step, 4.2, 6e-4, 3.0] for step in range(100, 300)]),
    "spike-of-12-3": ("clipping", [[200, 30.0, 1.0, 1.0]]),
    "spike-is-clipped": ("clipping", [[200, 12.3, 12.3, 1.0]]),
    "spike-keeps-its-direction": ("clipping", [[200, 12.3, 1.0, 0.7]]),
    "run-loses-updates-in-bfloat16": ("lost_updates", [[0, 0.0]]),
    "run-keeps-updates-with-masters": ("lost_updates", [[0, 0.4]]),
    "masters-end-lower": ("best_validation", 2.1),
    "training-and-validation-part": ("validation", [[0, 10.8], [500, 5.1], [1100, 5.0]]),
    "text-of-a-random-model": ("samples", [{"step": 0, "loss": 10.8, "text": "the and to of"}]),
    "text-of-common-words": ("samples", [{"step": 0, "loss": 4.0, "text": "gnome Zurich pixels leukemia"}]),
}


@pytest.mark.parametrize("name", CHANGES)
def test_another_run_gives_another_finding(judge, tmp_path, name):
    key, value = CHANGES[name]
    with_lessons(tmp_path, lambda row: {**row, key: value})
    record = judge(name)
    assert record.value == "does not hold"
    fixed = name in ("run-starts-at-a-uniform-guess", "spike-is-clipped", "spike-keeps-its-direction")
    assert record.verdict == ("fail" if fixed else "pass"), "only what no run may change is stated in the ledger"


def test_training_and_validation_part_only_if_training_falls_from_the_lowest_validation_on(judge, tmp_path):
    with_lessons(tmp_path)
    fall = judge("training-and-validation-part").details["readings"][0]["details"]["training_falls"]
    assert fall == [pytest.approx(4.2 - 2.2 * 0.5 - 2.0, abs=0.03)]
    with_lessons(tmp_path, lambda row: {**row, "last_loss": 3.3} if row["lesson"] == "loss-and-text" else row)
    assert judge("training-and-validation-part").value == "does not hold"


def test_an_explosion_is_counted_and_a_run_that_exploded_ends_above_all(judge, tmp_path):
    with_lessons(tmp_path, lambda row: {**row, "exploded_at": 310} if row["arm"] == "constant-6e-4" else row)
    assert judge("constant-rate-explodes").value == "holds"
    assert judge("cosine-beats-a-constant-rate").details["readings"][0]["value"] == float("inf")


def test_a_setting_that_a_run_does_not_state_is_missing(judge, tmp_path):
    with_lessons(tmp_path, lambda row: {**row, "settings": {}})
    assert judge("weight-decay").message == "weight_decay of the run schedule-cosine-seed-0: its row has None"


def test_the_warm_up_is_that_of_the_run_s_rates_and_not_of_its_settings(judge, tmp_path):
    with_lessons(tmp_path, lambda row: {**row, "settings": {**row["settings"], "warmup": 200}})
    assert judge("warm-up-share").value == "holds"


def test_norms_are_those_of_gpt2_s_size_where_it_was_run(judge, tmp_path):
    large = [{**row, "curve": [[step, 4.2, 6e-4, 3.0] for step in range(1000)]} for row in full_size_rows()]
    with_lessons(tmp_path, lambda row: row, *large)
    record = judge("usual-norms")
    assert record.value == "does not hold"
    assert record.details["readings"][0]["details"]["about"]["parameters"] == 124_439_808


def test_losses_are_compared_by_seed(judge, tmp_path):
    """Seed 2 was not run with the other arm, and its loss would move the mean."""

    def change(row):
        far = row["arm"] == "constant-1e-5" and row["seed"] == 2
        return {**row, "last_loss": 50.0} if far else row

    rows = [row for row in lesson_rows() if (row["arm"], row["seed"]) != ("cosine", 2)]
    save(tmp_path, "lessons", [change(row) for row in rows], subject="gpt.train")
    reading = judge("small-rate-is-slow").details["readings"][0]
    assert reading["details"]["spread"] == {"low": pytest.approx(1.29), "high": pytest.approx(1.3), "over": "2 runs"}
    others = [row for row in lesson_rows() if row["arm"] != "cosine" or row["seed"] != 0]
    apart = [row for row in others if row["arm"] != "constant-1e-5" or row["seed"] == 0]
    save(tmp_path, "lessons", apart, subject="gpt.train")
    assert judge("small-rate-is-slow").message.startswith("a seed that schedule-constant-1e-5 and schedule-cosine were")


def test_losses_of_another_vocabulary_or_size_are_not_compared_with_the_lessons_figures(judge, tmp_path):
    with_lessons(tmp_path)
    for name in AT_FULL_SIZE:
        record = judge(name)
        assert record.verdict == "skip"
        assert "at GPT-2's size: on a GPU, `gpt-harness lessons --preset gpt2-124m" in record.message
    assert "models of 345,000 parameters" in judge("cosine-reaches-2-0").message
    with_lessons(tmp_path, lambda row: {**row, "vocabulary_size": 65})
    assert "GPT-2's vocabulary" in judge("text-of-common-words").message


def test_a_run_that_is_too_short_or_did_not_explode_says_so(judge, tmp_path):
    short = [{**row, "steps": 900, "exploded_at": None} for row in full_size_rows()]
    with_lessons(tmp_path, lambda row: row, *short)
    assert judge("small-rate-reaches-4-3").message.startswith("a run of 10,000 steps: `make lessons` did 900 of")
    found = judge("constant-rate-explodes-near-step-300")
    assert (found.value, found.details["readings"][0]["value"]) == ("does not hold", "none of 1 runs in 900 steps")
    shorter = {**short[1], "seed": 1, "steps": 300}
    with_lessons(tmp_path, lambda row: row, *short, shorter)
    assert judge("constant-rate-explodes-near-step-300").message == (
        "a run of 400 steps: `make lessons` did 300 of constant-6e-4, without an explosion"
    )
    with_lessons(tmp_path, lambda row: row, *full_size_rows(), shorter)
    assert judge("constant-rate-explodes-near-step-300").value == "holds", "one has exploded"


def test_without_the_runs_the_claims_are_skipped_and_name_the_command(judge, tmp_path):
    assert judge("usual-norms").message == "`make lessons` has not run"
    assert judge("flash-is-faster").message == "`make bench` has not run"
    save(tmp_path, "lessons", [lesson_row("schedule", "cosine")], subject="gpt.train")
    assert judge("usual-norms").message == "`make lessons` has not done the run clipping-clipped yet"


def test_runs_of_another_subject_are_not_used(judge, tmp_path):
    save(tmp_path, "lessons", lesson_rows(), subject="theirs.train")
    save(tmp_path, "bench", bench_rows(), subject="theirs.py:GPT")
    assert "has not run for gpt:GPT" in judge("usual-norms").message
    assert "has not run for gpt:GPT" in judge("flash-is-faster").message


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("gpt:GPT", True),
        ("gpt.model:GPT", True),
        ("gpt.py:GPT", False),
        ("gpt/mine.py:GPT", False),
        ("gptx:GPT", False),
    ],
)
def test_the_shipped_trainer_s_runs_are_of_its_package_and_of_nobody_s_file(tmp_path, monkeypatch, name, found):
    monkeypatch.setattr(Resources, "current", Resources(records=str(tmp_path / "records")))
    save(tmp_path, "lessons", lesson_rows(), subject="gpt.train")
    if found:
        assert newest_run("lessons", name).file.startswith("lessons-")
    else:
        with pytest.raises(MissingResource, match=f"has not run for {name}"):
            newest_run("lessons", name)


def test_a_record_file_is_read_once_for_all_claims_and_again_when_it_has_changed(judge, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(run_records, "read", lambda path: asked.append(path) or read(path))
    monkeypatch.setattr(ORIGINALS, "patches", list)  # what a test replaces is no doing of the subject's
    with_lessons(tmp_path)
    for name in ("usual-norms", "spike-is-clipped", "masters-end-lower"):
        assert judge(name).value == "holds"
    assert len(asked) == 1
    with_lessons(tmp_path, lambda row: {**row, "best_validation": 2.1})
    assert judge("masters-end-lower").value == "does not hold"


def test_the_newest_run_counts(judge, tmp_path):
    save(tmp_path, "bench", bench_rows(flash=0.06), subject="gpt:GPT", stamp="20261126T100000Z")
    save(tmp_path, "bench", bench_rows(), subject="gpt:GPT", stamp="20261127T100000Z")
    assert judge("flash-is-faster").details["readings"][0]["value"] == pytest.approx(3.0)


def test_claims_about_time_are_judged_by_the_benchmarks(judge, tmp_path):
    save(tmp_path, "bench", bench_rows(), subject="gpt:GPT")
    for name, found in BY_BENCH.items():
        assert (judge(name).value, judge(name).verdict) == (found, "pass")
    spread = judge("flash-is-faster").details["readings"][0]["details"]["spread"]
    assert spread["low"] < 3 < spread["high"]
    save(tmp_path, "bench", bench_rows(flash=0.01, compiled=1.5), subject="gpt:GPT", stamp="20261128T100000Z")
    assert [judge(name).value for name in BY_BENCH] == ["does not hold", "does not hold"]


def test_a_time_that_is_inconclusive_missing_or_no_evidence_is_no_finding(judge, tmp_path):
    rows = bench_rows(flash=0.0601)
    rows[0]["ratios"][0] |= {"verdict": "FASTER", "ratio": 0.5, "low": 0.3, "high": 0.7}
    rows[1]["ratios"] = []
    save(tmp_path, "bench", rows, subject="gpt:GPT")
    message = judge("flash-is-faster").message
    assert message.startswith("a conclusive time of flash")
    assert message.endswith("found [1.43, 3.33] times")
    assert "a time of compiled" in judge("torch-compile").message
    alarms = {"ending": {"false_alarms": {"evidence": False}}}
    save(tmp_path, "bench", bench_rows(), subject="gpt:GPT", stamp="20261128T100000Z", **alarms)
    assert "identical arms different" in judge("flash-is-faster").message
    save(tmp_path, "bench", bench_rows()[1:], subject="gpt:GPT", stamp="20261129T100000Z")
    assert judge("flash-is-faster").message.endswith("the newest run of `make bench` has the points none")


def test_a_time_that_is_the_same_refutes_a_claim_of_twice_as_fast(judge, tmp_path):
    rows = bench_rows()
    rows[0]["ratios"][0] |= {"verdict": "SAME", "ratio": 1.0, "low": 0.99, "high": 1.01}
    save(tmp_path, "bench", rows, subject="gpt:GPT")
    assert judge("flash-is-faster").value == "does not hold"


def test_the_bounds_of_a_time_are_those_of_its_claim(shipped):
    timed = [check for check in shipped.values() if check.claim is not None and check.measure == "times_faster"]
    ends = [check.claim.claimed.get("between") or [check.claim.claimed["at_least"]] for check in timed]
    assert [check.parameters["bounds"] for check in timed] == ends


def test_the_ridge_of_another_machine_is_told_and_not_judged(judge, tmp_path):
    save(tmp_path, "bench", bench_rows(), subject="gpt:GPT")
    assert judge("ridge-of-an-a100").message == (
        "an A100: `make bench` ran on Intel(R) Xeon(R) Processor @ 2.10GHz, 2 cores, whose ridge is "
        "7.2 FLOP per byte (gemm float32 square)"
    )
    rows = bench_rows()
    rows[0]["ceilings"] = [{"name": "gemm bfloat16 square", "rate": 280e12}, {"name": "read", "rate": 1.8e12}]
    gpu = {"environment": {"gpu": "NVIDIA A100-SXM4-80GB", "cores": 8}}
    save(tmp_path, "bench", rows, subject="gpt:GPT", stamp="20261128T100000Z", **gpu)
    assert judge("ridge-of-an-a100").value == "holds"


def test_the_made_up_runs_have_the_keys_that_the_command_writes():
    numbers = {"loss": 4.0, "lr": 6e-4, "norm": 0.7, "clipped_norm": 0.7, "clip_cosine": None}
    log = TrainingLog(header={"vocabulary_size": 65}, steps=tuple({"step": step, **numbers} for step in (0, 1)))
    written = run_row(LessonRun("schedule", "cosine", 0, {}, 1.0), log, seconds=1.0, made={})
    made_up = lesson_row("schedule", "cosine")
    assert set(made_up) <= set(written)
    for key in ("curve", "clipping"):
        assert len(written[key][0]) == len(made_up[key][0]) == 4


def test_the_lessons_and_arms_that_claims_name_are_done_by_the_command(shipped):
    done = {(run.lesson, run.arm) for lesson in read_lessons() for run in lesson.runs}
    named = [c.parameters for c in shipped.values() if c.claim is not None and "lesson" in c.parameters]
    assert named
    for parameters in named:
        arms = [parameters[key] for key in ("arm", "than") if key in parameters]
        assert {(parameters["lesson"], arm) for arm in arms} <= done
        assert parameters["lesson"] in {lesson for lesson, _ in done}
