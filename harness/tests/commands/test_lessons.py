"""`gpt-harness lessons`, from the command line to the page: with a trainer that trains nothing, once with gpt.train."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import cli
from harness.commands import lessons as command
from harness.core.record_files import read
from harness.lessons import execution, full_size, plan, trainer_process
from harness.lessons.lesson_file import read_full_size, read_lessons
from harness.lessons.training_log import read_training_log
from harness.report.plot import Plot
from harness.tests.lessons.signals import signal_when

SMALL = """
[settings]
steps = {steps}
eps = 0.01
[[lesson]]
name = "schedule"
title = "Rates"
claim = "A constant rate explodes."
about = "Small."
seconds = 1
arm = [ { name = "cosine", seeds = [0, 1] }, { name = "constant-1e-1", settings = { lr = 999 } } ]
[full_size]
name = "full-size"
title = "Full"
claim = ""
about = ""
seconds = 1
arm = [ { name = "cosine" } ]
"""


@pytest.fixture
def small(tmp_path, monkeypatch, request):
    """Have the command do three runs of a fake trainer; return a function that changes the number of their steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trainer_process, "TRAINER", "harness.tests.lessons.fake_trainer")
    monkeypatch.setattr(execution, "POLL", 0.02)
    if not hasattr(request, "param"):
        monkeypatch.setattr(Plot, "save", lambda plot, folder: [])  # drawing takes a second
    path = tmp_path / "lessons.toml"

    def write(steps=5):
        path.write_text(SMALL.replace("{steps}", str(steps)))

    write()
    monkeypatch.setattr(plan, "read_lessons", lambda: read_lessons(path))
    monkeypatch.setattr(plan, "read_full_size", lambda preset: read_full_size(preset, path))
    monkeypatch.setattr(plan, "load_text", lambda name: "")
    monkeypatch.setattr(command, "CLAIMS", tmp_path / "claims.toml")  # there is none
    return write


def newest():
    (path,) = sorted(Path("reports/records").glob("lessons-*.jsonl"))[-1:]
    return read(path)


@pytest.mark.parametrize("small", ["with figures"], indirect=True)
def test_the_runs_become_a_record_and_a_page(small, capsys):
    assert cli.main(["lessons"]) == 0
    rows = newest()
    assert rows[0]["run"] == "lessons"
    assert rows[0]["environment"]["python"]
    runs = {row["name"]: row for row in rows if row["kind"] == "run"}
    assert set(runs) == {"schedule-cosine-seed-0", "schedule-cosine-seed-1", "schedule-constant-1e-1-seed-0"}
    assert runs["schedule-constant-1e-1-seed-0"]["exploded_at"] == 3
    assert rows[-1]["complete"] is True
    page = Path("reports/lessons.md").read_text()
    assert "The lessons: A constant rate explodes." in page
    assert "Not finished" not in page
    assert Path("reports/plots/lessons-schedule.png").stat().st_size > 0
    assert "reports/lessons.md; records: reports/records/lessons-" in capsys.readouterr().out
    assert cli.main(["lessons", "schedule", "--only", "cosine"]) == 0  # nothing is repeated, and nothing is lost
    assert "2 of 2 runs were finished before" in capsys.readouterr().err
    assert len([row for row in newest() if row["kind"] == "run"]) == 3
    assert "Older records: `lessons-" in Path("reports/lessons.md").read_text()


def test_ctrl_c_exits_130_reports_what_is_done_and_the_next_command_goes_on(small, capsys):
    small(steps=100)
    assert cli.main(["lessons", "--only", "constant-*"]) == 0
    logs = [Path(f"reports/lessons/schedule-cosine-seed-{seed}/log.jsonl").resolve() for seed in (0, 1)]
    signal_when(lambda: all(len(read_training_log(path).steps) > 2 for path in logs))
    assert cli.main(["lessons"]) == 130
    assert "NOT FINISHED  schedule-cosine-seed-0: interrupted after step" in capsys.readouterr().out
    page = Path("reports/lessons.md").read_text()
    assert "**Not finished: 2 runs.**" in page
    assert "- `schedule-cosine-seed-1`: interrupted after step" in page
    assert newest()[-1]["complete"] is False
    assert cli.main(["lessons"]) == 0
    assert "Not finished" not in Path("reports/lessons.md").read_text()


def test_a_budget_that_is_used_up_exits_3(small, monkeypatch, capsys):
    monkeypatch.setattr(execution, "LEAST_MINUTES", 0.005)
    small(steps=3000)
    assert cli.main(["lessons", "--budget", "0.02", "--processes", "1", "--only", "cosine"]) == 3
    assert "no run is finished, so there is no report" in capsys.readouterr().out
    assert not Path("reports/lessons.md").exists()


def test_a_run_that_fails_exits_1(small, tmp_path, capsys):
    text = SMALL.replace("{steps}", "5").replace("lr = 999", "lr = 666")
    (tmp_path / "lessons.toml").write_text(text)
    assert cli.main(["lessons"]) == 1
    assert "NOT FINISHED  schedule-constant-1e-1-seed-0: gpt.train: the disk is full" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shedule"], "no lesson is called 'shedule'; did you mean 'schedule'?"),
        (["--budget", "-1"], "expected a --budget of 0 minutes or more"),
        (["--force"], "--force is for a --preset"),
        (["--preset", "debug"], "needs --budget MINUTES"),
        (["schedule", "--preset", "debug", "--budget", "1"], "leave out schedule"),
    ],
)
def test_a_mistake_is_one_line_and_starts_nothing(small, capsys, arguments, message):
    assert cli.main(["lessons", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not Path("reports").exists()


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (1, 1)])
def test_the_claims_are_judged_at_the_end_with_the_records_of_these_reports(small, monkeypatch, status, expected):
    Path("claims.toml").touch()
    asked = []
    pytest_process = SimpleNamespace(run=lambda line, **_: asked.append(line) or SimpleNamespace(returncode=status))
    monkeypatch.setattr(command, "subprocess", pytest_process)
    assert cli.main(["lessons", "--output", "mine", "--only", "constant-*"]) == expected
    (line,) = asked
    assert line[1:3] == ["-m", "pytest"]
    assert line[-2:] == ["--reports", "mine"]
    assert cli.main(["lessons", "--output", "mine", "--no-claims"]) == 0
    assert len(asked) == 1


def test_a_preset_s_run_that_its_budget_stopped_is_recorded_as_such(small, monkeypatch, capsys):
    """A GPU's minutes are not thrown away: its run is on the page, with the step at which it was stopped."""
    monkeypatch.setattr(execution, "LEAST_MINUTES", 0.001)
    monkeypatch.setattr(full_size, "measured_flops_per_second", lambda: 1e14)
    monkeypatch.setattr(full_size, "measure_step", lambda *arguments: 0.001)
    text = SMALL.replace("{steps}", "5").replace('{ name = "cosine" }', '{ name = "cosine", settings = { eps = 0.2 } }')
    Path("lessons.toml").write_text(text)
    assert cli.main(["lessons", "--preset", "debug", "--budget", "0.02"]) == 3
    (row,) = [row for row in newest() if row["kind"] == "run"]
    assert (row["lesson"], row["ended"]) == ("full-size", "budget")
    small()
    assert cli.main(["lessons"]) == 0  # the page of the other runs still has it
    assert "full-size" in {row["lesson"] for row in newest() if row["kind"] == "run"}


def test_the_trainer_itself_does_a_run_and_says_what_a_row_needs(small, tmp_path, monkeypatch):
    """The contract with gpt.train: its flags, log and exit status, and its failure for a loss that is not finite."""
    monkeypatch.setattr(trainer_process, "TRAINER", "gpt.train")
    settings = {
        "text": "tiny.txt", "vocabulary": "characters", "n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 8,
        "batch_size": 2, "device": "cpu", "eval_every": 2, "eval_batches": 1, "sample_every": 2, "sample_tokens": 4,
        "sample_prompt": "a",
    }  # fmt: skip
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())
    text = SMALL.replace("eps = 0.01\n", lines).replace("{steps}", "6").replace("[0, 1]", "[0]")
    text = text.replace("lr = 999", 'lr = 1e30, schedule = "constant", warmup = 0, clip = 0.0')
    (tmp_path / "lessons.toml").write_text(text)
    (tmp_path / "tiny.txt").write_text("ab cd ef gh " * 60)
    assert cli.main(["lessons"]) == 0
    rows = {row["arm"]: row for row in newest() if row["kind"] == "run"}
    row = rows["cosine"]
    assert (row["steps"], row["ended"], row["vocabulary_size"], row["device"]) == (6, "finished", 9, "cpu")
    assert [step for step, *_ in row["curve"]] == list(range(6))
    assert [step for step, _ in row["validation"]] == [0, 2, 4, 6]
    assert [sample["step"] for sample in row["samples"]] == [0, 2, 4, 6]
    assert all(sample["loss"] is not None and sample["text"] for sample in row["samples"])
    assert all(share is not None for _, share in row["lost_updates"])
    assert len(row["lost_updates"]) == 6
    assert row["tokens_per_second"] > 0
    assert row["train_tokens"] == 648
    exploded = rows["constant-1e-1"]
    assert exploded["ended"] == "not finite"
    assert exploded["exploded_at"] == exploded["steps"] < 6
