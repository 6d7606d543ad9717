"""Runs are done, stopped and resumed, with a trainer that trains nothing."""

import io
import json
import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from harness.lessons import execution, run_folder, trainer_process
from harness.lessons.execution import execute
from harness.lessons.lesson_file import LessonRun
from harness.lessons.plan import Plan
from harness.lessons.progress import Progress
from harness.lessons.run_folder import RunFolder, fingerprint
from harness.tests.lessons.signals import signal_when, wait_for


@pytest.fixture(autouse=True)
def fake_trainer(monkeypatch):
    monkeypatch.setattr(trainer_process, "TRAINER", "harness.tests.lessons.fake_trainer")
    monkeypatch.setattr(execution, "POLL", 0.02)


def lesson_run(arm, *, seconds=1.0, **settings):
    return LessonRun("schedule", arm, 0, {"steps": 5, **settings}, seconds)


def folders_of(parent, *runs):
    return [RunFolder(parent, run, fingerprint(run)) for run in runs]


def do(folders, *, processes=2, minutes=0.0, output=None):
    plan = Plan(list(folders), (), processes, 1)
    progress = Progress(plan.unfinished, processes=processes, stream=output or io.StringIO())
    return execute(plan, minutes=minutes, commit="abc", progress=progress)


def test_all_runs_are_done_and_a_finished_one_is_not_repeated(tmp_path):
    folders = folders_of(tmp_path, lesson_run("a"), lesson_run("b"), lesson_run("c"))
    outcome = do(folders)
    assert sorted(outcome.finished) == ["schedule-a-seed-0", "schedule-b-seed-0", "schedule-c-seed-0"]
    assert not outcome.failed
    assert not outcome.unfinished
    row = folders[0].row()
    assert (row["steps"], row["ended"], row["made"]["git_commit"]) == (5, "finished", "abc")
    assert row["made"]["device_name"] == "a processor"
    before = [(folder.path / "log.jsonl").stat().st_mtime_ns for folder in folders]
    assert sorted(do(folders).finished) == sorted(outcome.finished)
    assert [(folder.path / "log.jsonl").stat().st_mtime_ns for folder in folders] == before


def test_the_trainer_gets_the_settings_the_seed_one_thread_and_the_text(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    folder = folders_of(tmp_path, lesson_run("a", n_layer=3))[0]
    plan = Plan([folder], (), 1, 1, {folder.run.name: tmp_path / "part.txt"})
    execute(plan, minutes=0.0, commit=None, progress=Progress([], processes=1, stream=io.StringIO()))
    flags = json.loads((folder.path / "config.toml").read_text())
    assert flags == {
        "--out": str(folder.path), "--steps": "5", "--n-layer": "3", "--seed": "0",
        "--text": str(tmp_path / "part.txt"), "--budget": "0.000",
    }  # fmt: skip
    assert trainer_process.child_environment(1)["OMP_NUM_THREADS"] == "1"
    assert trainer_process.child_environment(None)["OMP_NUM_THREADS"] == "7"


def test_another_setting_or_another_trainer_makes_another_run(tmp_path):
    (folder,) = folders_of(tmp_path, lesson_run("a"))
    do([folder])
    (other,) = folders_of(tmp_path, lesson_run("a", steps=7))
    assert (other.finished, other.outdated, folder.outdated) == (False, True, False)
    do([other])
    assert other.row()["steps"] == 7  # from its first step: the folder was emptied
    assert RunFolder(tmp_path, lesson_run("a", steps=7), "of another trainer").finished is False


def test_the_fingerprint_is_of_the_settings_the_text_and_the_trainer_s_source(tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "HOME", tmp_path)
    source = tmp_path / "gpt" / "training" / "trainer.py"
    tests = tmp_path / "gpt" / "tests" / "test_trainer.py"
    for path in (source, tests):
        path.parent.mkdir(parents=True)
        path.write_text("a = 1")
    before = fingerprint(lesson_run("a"))
    tests.write_text("a = 2")
    assert fingerprint(lesson_run("a")) == before
    assert fingerprint(lesson_run("a", lr=1.0)) != before
    assert fingerprint(replace(lesson_run("a"), text_characters=9)) != before
    assert fingerprint(replace(lesson_run("a"), seconds=9.0)) == before
    source.write_text("a = 2")
    assert fingerprint(lesson_run("a")) != before


def test_the_longest_run_starts_first(tmp_path):
    folders = folders_of(
        tmp_path, lesson_run("short"), lesson_run("long", seconds=9.0), lesson_run("middle", seconds=3.0)
    )
    outcome = do(folders, processes=1)
    assert [name.split("-")[1] for name in outcome.finished] == ["long", "middle", "short"]


def test_ctrl_c_saves_every_run_and_the_next_command_resumes_them(tmp_path):
    folders = folders_of(tmp_path, *(lesson_run(arm, steps=60, eps=0.02) for arm in "abc"))
    signal_when(lambda: all(len(folder.log.steps) > 2 for folder in folders[:2]))
    outcome = do(folders)
    assert outcome.signal == signal.SIGINT
    assert outcome.finished == []
    assert outcome.unfinished["schedule-c-seed-0"] == "stopped before its turn"
    assert "interrupted after step" in outcome.unfinished["schedule-a-seed-0"]
    done = len(folders[0].log.steps)
    assert 0 < done < 60
    assert not folders[0].finished
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert len(do(folders).finished) == 3
    assert json.loads((folders[0].path / "config.toml").read_text())["resumed"]
    steps = [event["step"] for event in folders[0].log.steps]
    assert steps == list(range(60))


def test_ctrl_c_while_a_trainer_starts_is_no_failure(tmp_path):
    """It was reported as: failed after 0.1 min: it printed nothing."""
    (folder,) = folders_of(tmp_path, lesson_run("a", lr=130))
    signal_when((folder.path / "starts").exists)
    outcome = do([folder])
    assert not outcome.failed
    assert outcome.unfinished == {"schedule-a-seed-0": "interrupted before its first step; it will be resumed"}


def test_a_budget_that_is_used_up_leaves_runs_unfinished_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "LEAST_MINUTES", 0.005)
    folders = folders_of(tmp_path, lesson_run("slow", steps=5000, eps=0.02, seconds=9.0), lesson_run("never"))
    outcome = do(folders, processes=1, minutes=0.02)
    assert outcome.signal is None
    assert outcome.finished == []
    assert "budget after step" in outcome.unfinished["schedule-slow-seed-0"]
    assert outcome.unfinished["schedule-never-seed-0"] == "the budget was used up before its turn"


def test_a_run_that_fails_says_why_and_the_others_go_on(tmp_path):
    folders = folders_of(tmp_path, lesson_run("bad", lr=666), lesson_run("good"))
    outcome = do(folders)
    assert outcome.failed == {"schedule-bad-seed-0": "gpt.train: the disk is full"}
    assert outcome.finished == ["schedule-good-seed-0"]
    assert not folders[0].finished


def test_a_loss_that_is_not_finite_is_a_result(tmp_path):
    (folder,) = folders_of(tmp_path, lesson_run("explodes", lr=999))
    outcome = do([folder])
    assert outcome.finished == ["schedule-explodes-seed-0"]
    assert folder.finished
    assert folder.row()["exploded_at"] == 3


def test_a_killed_trainer_is_resumed(tmp_path):
    (folder,) = folders_of(tmp_path, lesson_run("a", steps=60, eps=0.02))

    def kill():
        wait_for(lambda: len(folder.log.steps) > 3)
        os.kill(json.loads((folder.path / "environment.json").read_text())["pid"], signal.SIGKILL)

    threading.Thread(target=kill).start()
    outcome = do([folder])
    assert outcome.unfinished == {"schedule-a-seed-0": "killed by signal 9; it will be resumed"}
    do([folder])
    assert len(folder.log.steps) == 60


def test_the_seconds_of_a_run_are_those_of_all_its_processes(tmp_path):
    (folder,) = folders_of(tmp_path, lesson_run("a"))
    folder.prepare("abc")
    folder.add(2.0, finished=False)
    folder.add(3.0, finished=True)
    assert (folder.state.seconds, folder.finished) == (5.0, True)
    assert folder.row()["seconds"] == 5.0


def test_a_second_signal_does_not_wait_for_the_trainers(tmp_path, monkeypatch):
    monkeypatch.setattr(trainer_process.TrainerProcess, "interrupt", lambda self: None)  # a trainer that hangs
    (folder,) = folders_of(tmp_path, lesson_run("a", steps=5000, eps=0.02))
    signal_when(lambda: len(folder.log.steps) > 2)
    signal_when(lambda: len(folder.log.steps) > 20)
    started = time.monotonic()
    outcome = do([folder])
    assert time.monotonic() - started < 5
    assert "killed by signal 9" in outcome.unfinished["schedule-a-seed-0"]


def test_the_line_says_which_runs_how_many_and_the_minutes_left():
    runs = [lesson_run(arm, seconds=60.0) for arm in "abcd"]
    progress = Progress(runs, processes=2, stream=io.StringIO())
    active = [(runs[0], 0.5, "500/1,000 loss 2.31"), (runs[1], 0.0, "starts")]
    line = progress.line(runs[2:], active, elapsed=15.0)
    assert line == "0 of 4 done · schedule-a-seed-0 500/1,000 loss 2.31 · schedule-b-seed-0 starts · 2 min left"
    progress.finished(runs[0], "finished")
    # Half the speed of lessons.toml: 60 expected seconds took two processes 60 s.
    assert progress.line(runs[2:], [(runs[1], 0.0, "starts")], elapsed=60.0).endswith("· 3 min left")
    assert progress.line(runs[2:], [(runs[1], 0.0, "starts")], elapsed=120.0).endswith("· 6 min left")
    assert progress.stream.getvalue() == "1 of 4: schedule-a-seed-0 finished\n"
