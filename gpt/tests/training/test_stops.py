"""The ends of a run: a signal, a budget, a failure, a full disk. What was good stays, and the end is logged."""

import dataclasses
import errno
import math
import os
import resource
import signal

import pytest
import torch

from gpt.errors import RunError
from gpt.tests.training.small_run import events, resume, saved, train
from gpt.training import checkpoints
from gpt.training import run as run_module
from gpt.training.checkpoints import load
from gpt.training.run_log import RunLog
from gpt.training.trainer import Trainer


def before_step(monkeypatch, number, action):
    """Do something just before a step of a run."""
    original = Trainer.train_step

    def step(trainer, **options):
        if trainer.step == number:
            action(trainer)
        return original(trainer, **options)

    monkeypatch.setattr(Trainer, "train_step", step)


@pytest.mark.parametrize(
    ("number", "status", "reason"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_lets_the_step_finish_saves_and_says_how_to_resume(
    tmp_path, monkeypatch, capfd, number, status, reason
):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    before_step(monkeypatch, 5, lambda trainer: signal.raise_signal(number))
    out = tmp_path / "run"
    assert train(out) == status
    assert [event["step"] for event in events(out, "step")] == [0, 1, 2, 3, 4, 5]
    assert events(out, "end") == [{"event": "end", "step": 6, "reason": reason}]
    assert "step-00000006" in saved(out)
    shown = capfd.readouterr().err
    assert "stopping after this step" in shown
    assert "stopped after step 6 of 8" in shown
    assert f"go on with: python -m gpt.train --resume {out}" in shown
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers
    monkeypatch.undo()
    assert resume(out) == 0


def test_a_budget_stops_saves_and_has_a_status_of_its_own(tmp_path, monkeypatch, capsys):
    clock = iter(range(10_000))
    monkeypatch.setattr(run_module.time, "monotonic", lambda: float(next(clock)))
    out = tmp_path / "run"
    assert train(out, "--steps", 1000, "--budget", 0.5) == 3
    end = events(out, "end")[0]
    assert end["reason"] == "budget"
    assert 0 < end["step"] < 1000
    assert [events(out, kind)[-1]["step"] for kind in ("validation", "sample", "checkpoint")] == 3 * [end["step"]]
    assert "(the budget is used up)" in capsys.readouterr().err


def test_a_budget_counts_the_step_that_would_go_over_it(tmp_path, monkeypatch):
    """A step of 11 seconds must not begin 10 seconds before the end."""
    clock = iter([0.0] + [50.0] * 1000)  # seconds
    monkeypatch.setattr(run_module.time, "monotonic", lambda: next(clock))
    original = Trainer.train_step
    monkeypatch.setattr(
        Trainer,
        "train_step",
        lambda trainer, **options: dataclasses.replace(original(trainer, **options), seconds=11.0),
    )
    assert train(tmp_path / "run", "--budget", 1) == 3
    assert len(events(tmp_path / "run", "step")) == 1


def test_a_budget_that_ends_in_the_last_step_ends_a_finished_run(tmp_path, monkeypatch):
    now = [0.0]  # seconds
    monkeypatch.setattr(run_module.time, "monotonic", lambda: now[0])
    before_step(monkeypatch, 7, lambda trainer: now.append(now.pop() + 61.0))
    out = tmp_path / "run"
    assert train(out, "--budget", 1) == 0
    assert events(out, "end") == [{"event": "end", "step": 8, "reason": "finished"}]


def break_loss(trainer):
    """Make the next loss NaN."""
    trainer.model.get_parameter("transformer.h.1.ln_2.bias").data[0] = math.nan


def test_a_loss_that_is_not_finite_fails_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, capsys):
    before_step(monkeypatch, 6, break_loss)
    out = tmp_path / "run"
    assert train(out) == 1
    end = events(out, "end")[0]
    assert (end["step"], end["reason"]) == (6, "failed")
    for message in (end["message"], capsys.readouterr().err):
        assert (
            "step 6: the loss is nan; the first values that are not finite are the output of transformer.h.1.ln_2"
            in message
        )
    assert "step-00000006" not in saved(out)
    load(out / "checkpoints" / "step-00000004")
    monkeypatch.undo()
    assert resume(out) == 0


def test_memory_that_runs_out_is_an_error_that_says_what_would_fit(tmp_path, monkeypatch, capsys):
    def full(trainer):
        raise torch.OutOfMemoryError("tried to allocate 20 MiB")

    before_step(monkeypatch, 3, full)
    assert train(tmp_path / "run") == 1
    shown = capsys.readouterr().err
    assert (
        "step 3 does not fit into the memory of cpu; the same steps fit with --batch-size 2 --accumulation 2" in shown
    )
    assert events(tmp_path / "run", "end")[0]["reason"] == "failed"


def test_a_bug_is_logged_and_shown_as_one(tmp_path, monkeypatch):
    def bug(trainer):
        raise ZeroDivisionError("a bug")

    before_step(monkeypatch, 3, bug)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path / "run")
    assert events(tmp_path / "run", "end")[0]["message"] == "ZeroDivisionError: a bug"


def test_ctrl_c_before_the_run_has_begun_ends_without_a_traceback(tmp_path, monkeypatch):
    def interrupt(command):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "run", interrupt)
    assert train(tmp_path / "run") == 130


# ---------------------------------------------------------------------------- a full disk


def test_a_disk_that_is_full_while_saving_ends_the_run_and_keeps_the_old_checkpoint(tmp_path, monkeypatch, capsys):
    out, write_files = tmp_path / "run", checkpoints.write_files

    def full(folder, snapshot):
        if snapshot.step > 4:
            (folder / "weights.safetensors").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_files(folder, snapshot)

    monkeypatch.setattr(checkpoints, "write_files", full)
    assert train(out, "--eval-every", 0) == 1
    assert "could not be saved (No space left on device); nothing of it is left, and step-00000004 is as before" in (
        capsys.readouterr().err
    )
    assert saved(out) == ["step-00000004"]
    assert events(out, "end")[0]["reason"] == "failed"
    monkeypatch.undo()
    assert resume(out) == 0
    assert saved(out) == ["best", "step-00000004", "step-00000008"]


def test_the_first_error_is_said_when_the_log_cannot_be_written_either(tmp_path, monkeypatch, capsys):
    def refuse(log, event, **values):
        raise RunError("log.jsonl: cannot be written")

    def write_files(folder, snapshot):
        monkeypatch.setattr(RunLog, "write", refuse)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(checkpoints, "write_files", write_files)
    assert train(tmp_path / "run") == 1
    assert "could not be saved (No space left on device)" in capsys.readouterr().err


def test_a_real_limit_of_the_size_of_files_does_the_same(tmp_path, capsys):
    """The log grows beyond the limit: its end cannot be written, and the error is said all the same."""
    out = tmp_path / "run"
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert train(out, "--steps", 4) == 0
    resource.setrlimit(resource.RLIMIT_FSIZE, ((out / "log.jsonl").stat().st_size + 850, hard))
    try:
        assert resume(out, "--steps", 8) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "log.jsonl: " in capsys.readouterr().err
    load(out / "checkpoints" / "step-00000004")
    assert resume(out, "--steps", 8) == 0
