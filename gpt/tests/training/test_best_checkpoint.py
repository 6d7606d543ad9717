"""The best checkpoint: a run goes on from it, and it is never of a course that was given up."""

import signal

import pytest

from gpt.tests.training.processes import ended, forked, kill_after_saving
from gpt.tests.training.small_run import events, losses, manifest, resume, same_weights, saved, shown_steps, train
from gpt.training.checkpoints import load
from gpt.training.run import Run
from gpt.training.trainer import Trainer


def test_a_run_goes_on_from_the_best_one(stopped, straight):
    assert resume(stopped / "checkpoints" / "best") == 0
    assert same_weights(stopped, straight)


def kill_after_the_best(out, step, start):
    """Do `start` in a process whose last action is to save the best checkpoint of a step."""
    assert ended(forked(lambda: kill_after_saving("save_best", step) or start())) == -signal.SIGKILL
    assert manifest(out, "best")["step"] == step


@pytest.mark.parametrize("step", [6, 8])
def test_a_run_that_was_killed_after_its_best_checkpoint_goes_on_from_it(tmp_path, straight, step):
    """It is newer than step-00000004. After the last step, the last checkpoint is not there yet."""
    out = tmp_path / "killed"
    kill_after_the_best(out, step, lambda: train(out, "--dropout", 0.1))
    assert resume(out) == 0
    event = events(out, "resume")[0]
    assert (event["checkpoint"], event["step"]) == ("best", step)
    assert same_weights(out, straight)
    assert same_weights(out, straight, "best")
    assert saved(out) == saved(straight)
    assert shown_steps(out)[1:] == shown_steps(straight)[1:]  # killed before it had logged the checkpoint


def test_the_best_checkpoint_of_a_course_that_is_given_up_is_removed(tmp_path, straight, monkeypatch, capsys):
    out = tmp_path / "killed"
    kill_after_the_best(out, 6, lambda: train(out, "--dropout", 0.1))
    with monkeypatch.context() as patch:
        interrupt_at_once(patch)
        assert resume(out / "checkpoints" / "step-00000004") == 130
    assert "removed what was saved after step 4: best" in capsys.readouterr().err
    assert saved(out) == ["step-00000004"]
    assert resume(out) == 0
    assert same_weights(out, straight, "best")
    assert shown_steps(out) == shown_steps(straight)


def test_a_run_that_stops_where_the_best_one_was_saved_saves_its_step(stopped, straight, monkeypatch):
    """The best one is replaced by the next better one."""
    with monkeypatch.context() as patch:
        interrupt_at_once(patch)
        assert resume(stopped / "checkpoints" / "best") == 130
    assert saved(stopped) == ["best", "step-00000003"]
    assert resume(stopped) == 0
    assert same_weights(stopped, straight)


def test_nothing_is_in_the_log_twice_though_a_checkpoint_is_older_than_the_validation_of_its_step(stopped, straight):
    """Ctrl-C saved it before the validation, and the run that went on from it was killed after the validation."""
    kill_after_the_best(stopped, 6, lambda: resume(stopped))
    assert resume(stopped) == 0
    assert [event["checkpoint"] for event in events(stopped, "resume")] == ["step-00000006"] * 2
    assert shown_steps(stopped) == shown_steps(straight)
    assert losses(stopped) == losses(straight)


def test_a_validation_at_the_end_of_a_budget_is_in_the_checkpoint(tmp_path, monkeypatch):
    """The checkpoint of that step was saved before it; a run that stops again at once has nothing to repeat."""
    out = tmp_path / "run"
    monkeypatch.setattr(Run, "_stop_reason", lambda run: "budget" if run.visited == 4 else None)
    assert train(out, "--eval-every", 0) == 3
    assert load(out / "checkpoints" / "step-00000004").state["run"]["best"]["step"] == 4
    assert resume(out) == 3
    assert shown_steps(out) == [[4], [4], [0, 4]]


def interrupt_at_once(patch):
    """Press Ctrl-C when a checkpoint has been loaded."""
    original = Trainer.load_state_dict
    patch.setattr(Trainer, "load_state_dict", lambda *both: original(*both) or signal.raise_signal(signal.SIGINT))
