"""Several processes: ranks that end together, a folder that two want, and signals of a terminal."""

import os
import signal

import pytest

from gpt.tests.training.processes import as_ranks, ended, forked
from gpt.tests.training.small_run import FLAGS, events, resume, saved, train, write_text
from gpt.training.run_folder import FolderLock
from gpt.training.trainer import Trainer


def test_two_ranks_fail_together_and_rank_0_says_why(tmp_path, capfd):
    write_text(tmp_path)
    assert as_ranks(*FLAGS, "--text", tmp_path / "text.txt", "--out", tmp_path / "run") == [0, 0]
    capfd.readouterr()
    assert as_ranks(*FLAGS, "--text", tmp_path / "text.txt", "--out", tmp_path / "run") == [2, 1]
    shown = capfd.readouterr().err
    assert shown.count("gpt.train: ") == 1
    assert "has a run already" in shown


def test_two_ranks_end_together_when_a_sample_fails(tmp_path, monkeypatch, capfd):
    """Rank 0 alone samples; with a bug there, the other rank would wait for it until its own connection breaks."""
    write_text(tmp_path)
    monkeypatch.setattr(Trainer, "sample", lambda trainer: 1 // 0)
    assert as_ranks(*FLAGS, "--text", tmp_path / "text.txt", "--out", tmp_path / "run") == [99, 1]
    assert events(tmp_path / "run", "end")[0]["message"].startswith("ZeroDivisionError")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_another_process_uses_is_left_alone(tmp_path, monkeypatch, capfd, workers):
    """As soon as that process was killed, its run can be resumed: workers that outlive it do not keep the folder."""
    out, (reading, writing) = tmp_path / "run", os.pipe()
    original = Trainer.train_step

    def step_and_wait(trainer, **options):
        original(trainer, **options)
        os.write(writing, b".")
        signal.pause()

    write_text(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step_and_wait)
        child = forked(lambda: train(out, "--workers", workers))
    os.read(reading, 1)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    for start in (lambda: resume(out), lambda: ended(forked(lambda: resume(out)))):
        assert start() == 1
        assert f"{out}: is in use by another process (Resource temporarily unavailable); wait" in capfd.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    os.kill(child, signal.SIGKILL)
    assert ended(child) == -signal.SIGKILL
    assert resume(out) == 0


def test_of_two_processes_that_start_a_run_in_one_folder_the_second_is_refused(tmp_path, monkeypatch, capfd):
    """Both have found the folder empty."""
    out, original = tmp_path / "run", FolderLock.take

    def take_after_another(lock):
        monkeypatch.setattr(FolderLock, "take", original)
        assert ended(forked(lambda: train(out))) == 0
        original(lock)

    monkeypatch.setattr(FolderLock, "take", take_after_another)
    assert train(out) == 2
    assert "run: has a run already" in capfd.readouterr().err
    assert len(events(out, "header")) == 1


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path, monkeypatch, capfd):
    write_text(tmp_path)

    def step(trainer, **options):
        for word in ("first", "second"):
            os.write(1, f"before the {word}\n".encode())
            os.kill(os.getpid(), signal.SIGINT)
        os.write(1, b"after the second\n")

    monkeypatch.setattr(Trainer, "train_step", step)
    assert ended(forked(lambda: train(tmp_path / "run"))) == -signal.SIGINT
    found = capfd.readouterr()
    assert found.out == "before the first\nbefore the second\n"
    assert "stopping after this step (Ctrl-C again ends at once)" in found.err


def test_a_signal_to_one_of_two_ranks_stops_both_after_the_same_step(tmp_path, monkeypatch):
    write_text(tmp_path)
    original = Trainer.train_step

    def step(trainer, **options):
        if trainer.step == 5 and trainer.ranks.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(trainer, **options)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert as_ranks(*FLAGS, "--text", tmp_path / "text.txt", "--out", tmp_path / "run") == [143, 143]
    assert events(tmp_path / "run", "end") == [{"event": "end", "step": 6, "reason": "terminated"}]
    assert "step-00000006" in saved(tmp_path / "run")
