"""A run of a preset: refused where it would show nothing, and as long as its minutes."""

import pytest

from harness.core.errors import HarnessError
from harness.lessons import full_size, plan, trainer_process
from harness.lessons.lesson_file import read_full_size
from harness.lessons.run_folder import preset_runs
from harness.tests.lessons.training_logs import write_log


def test_the_flops_of_a_step_are_the_closed_form():
    """855 MFLOP a token at 1,024 tokens of context, 8,192 tokens a step (FACTS: 6·(N - wpe) + 12·L·C·T)."""
    settings = full_size.preset_settings("gpt2-124m")
    assert full_size.step_flops(settings) / 8192 == pytest.approx(855e6, rel=2e-3)


def test_an_unknown_preset_is_named():
    with pytest.raises(HarnessError, match="no preset 'gpt2-124'; did you mean 'gpt2-124m'"):
        full_size.preset_settings("gpt2-124")


def test_a_cpu_refuses_gpt2_and_says_how_long_a_step_takes(monkeypatch):
    monkeypatch.setattr(full_size, "measured_flops_per_second", lambda: 100e9)
    settings = full_size.preset_settings("gpt2-124m")
    with pytest.raises(
        HarnessError, match=r"a step of gpt2-124m takes about 70 s .* so 8 minutes are 7 steps; .*--force"
    ):
        full_size.refuse_on_cpu("gpt2-124m", settings, 8.0)
    full_size.refuse_on_cpu("gpt2-124m", settings, 60 * 24.0)  # a day is enough
    full_size.refuse_on_cpu("debug", full_size.preset_settings("debug"), 1.0)


def test_the_steps_fit_the_minutes_and_the_warm_up_is_a_twentieth_of_them():
    cosine, constant, _ = read_full_size("gpt2-124m").runs
    planned = full_size.with_steps(cosine, 8.0, 0.05)
    assert planned.settings["steps"] == 8 * 60 * full_size.FOR_STEPS / 0.05
    assert planned.settings["warmup"] == planned.settings["steps"] / 20
    assert full_size.with_steps(constant, 8.0, 0.05).settings["warmup"] == 0


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """Return a function that plans a run of the debug preset with a trainer that trains nothing."""
    monkeypatch.setattr(trainer_process, "TRAINER", "harness.tests.lessons.fake_trainer")
    monkeypatch.setattr(full_size, "measured_flops_per_second", lambda: 100e9)

    def make(minutes=0.5, only=()):
        return plan.plan_preset(tmp_path, "debug", only, minutes=minutes, force=False)

    return make


def test_a_trial_decides_the_steps_and_leaves_nothing(planned, tmp_path, capsys):
    (folder,) = planned().folders
    steps = int(0.5 * 60 * full_size.FOR_STEPS / 0.1)  # the fake trainer says that a step takes 0.1 s
    assert folder.run.settings["steps"] == steps
    assert folder.run.name == "debug-cosine-seed-0"
    assert f"debug-cosine-seed-0: a step takes 0.1 s, so {steps} steps fit 0.5 minutes" in capsys.readouterr().out
    assert list((tmp_path / "lessons").iterdir()) == []


def test_a_run_that_was_started_keeps_its_steps_and_other_minutes_are_another_run(planned, tmp_path, monkeypatch):
    (folder,) = planned().folders
    folder.prepare("abc")
    write_log(folder.path, [4.0, 3.9], ending="budget")
    monkeypatch.setattr(
        full_size, "measure_step", lambda *arguments: pytest.fail("a trial of a run that has its steps")
    )
    assert planned().folders[0].run.settings == folder.run.settings
    (found,) = preset_runs(tmp_path / "lessons")
    assert found.run.settings == folder.run.settings
    monkeypatch.setattr(full_size, "measure_step", lambda *arguments: 0.2)
    (other,) = planned(minutes=2.0).folders
    assert other.run.settings["steps"] == 480
    assert not other.resumable


def test_a_trial_that_fails_says_why(planned, monkeypatch):
    monkeypatch.setattr(full_size, "TRIAL_STEPS", 2)  # fewer than it leaves out
    with pytest.raises(HarnessError, match="the trial of debug-cosine-seed-0 failed: it printed nothing"):
        planned()


def test_a_plan_has_the_runs_that_are_wanted_and_no_others(planned):
    *_, lesson = planned().lessons
    assert [run.name for run in lesson.runs] == ["debug-cosine-seed-0"]
    assert lesson.as_row()["preset"] == "debug"


def test_several_arms_share_the_minutes(planned):
    folders = planned(minutes=1.0, only=["cosine", "constant-6e-4"]).folders
    assert [folder.run.settings["steps"] for folder in folders] == [int(30 * full_size.FOR_STEPS / 0.1)] * 2
