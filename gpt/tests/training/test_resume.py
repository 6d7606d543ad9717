"""Resuming: a run that was killed and resumed ends in the bytes of one that was never stopped."""

import errno
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gpt.tests.training.processes import as_ranks, ended, forked, kill_after_saving, torchrun
from gpt.tests.training.small_run import (
    FLAGS,
    events,
    losses,
    manifest,
    resume,
    same_weights,
    saved,
    shown_steps,
    train,
    write_text,
)
from gpt.train import main
from gpt.training.checkpoints import Checkpoints, load
from gpt.training.config_file import read_config

# 945 tokens to train on: an epoch is 15 steps of 2 x 4 windows of 8, so that the kill is in the middle of the second.
# A sample has just been drawn then, and the last validation is one step back.
STEPS, KILLED = 22, 16
HARD = ["--steps", STEPS, "--dropout", 0.2, "--accumulation", 2, "--eval-every", 5, "--keep", 9]


def arguments(out):
    return [str(word) for word in (*FLAGS, "--text", out.parent / "text.txt", "--out", out, *HARD)]


def assert_same(one, other):
    """Check that nested containers of tensors and plain values are bitwise equal."""
    assert type(one) is type(other)
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_same(a, b)
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def check_same_end(straight, resumed):
    """Check that two runs ended in the same bytes, and that the second was resumed where it was killed."""
    for name in (f"step-{STEPS:08d}", "best"):
        sums = [manifest(out, name)["files"]["weights.safetensors"]["sha256"] for out in (straight, resumed)]
        assert sums[0] == sums[1]
        one, other = (load(out / "checkpoints" / name) for out in (straight, resumed))
        assert one.step == other.step
        assert_same(
            one.state, other.state
        )  # the bytes may differ: pickle writes an equal string twice, or refers to it
    assert losses(straight) == losses(resumed)
    assert len(losses(straight)) == STEPS
    for kind, value in (("validation", "loss"), ("sample", "text")):
        found = [[(event["step"], event[value]) for event in events(out, kind)] for out in (straight, resumed)]
        assert found[0] == found[1]
    assert [event["step"] for event in events(resumed, "resume")] == [KILLED]
    assert not events(straight, "resume")


def test_a_killed_and_resumed_run_ends_in_the_bytes_of_a_straight_one(tmp_path):
    assert train(tmp_path / "straight", *HARD) == 0
    assert (
        ended(forked(lambda: kill_after_saving("save", KILLED) or main(arguments(tmp_path / "killed"))))
        == -signal.SIGKILL
    )
    assert Checkpoints(tmp_path / "killed" / "checkpoints").newest().name == f"step-{KILLED:08d}"
    assert ended(forked(lambda: resume(tmp_path / "killed"))) == 0
    check_same_end(tmp_path / "straight", tmp_path / "killed")


def test_so_does_a_run_on_two_ranks_that_torchrun_started(tmp_path, capfd):
    write_text(tmp_path)
    assert (
        ended(
            forked(lambda: torchrun(lambda: kill_after_saving("save", KILLED) or main(arguments(tmp_path / "killed"))))
        )
        == 1
    )
    assert "Signal 9 (SIGKILL)" in capfd.readouterr().err
    assert Checkpoints(tmp_path / "killed" / "checkpoints").newest().name == f"step-{KILLED:08d}"
    assert as_ranks("--resume", tmp_path / "killed") == [0, 0]
    capfd.readouterr()
    assert as_ranks(*arguments(tmp_path / "straight")) == [0, 0]
    check_same_end(tmp_path / "straight", tmp_path / "killed")
    assert capfd.readouterr().err.count("training for 22 steps") == 1  # rank 0 alone prints
    assert manifest(tmp_path / "straight", "best")["ranks"] == 2
    assert events(tmp_path / "straight", "header")[0]["tokens_per_step"] == 2 * 2 * 32
    # One process cannot go on with it: each rank has its own random state.
    assert resume(tmp_path / "straight", "--steps", 30) == 2
    assert "it has 2 ranks, and this run 1" in capfd.readouterr().err


def test_a_run_that_was_stopped_by_a_signal_resumes_the_same(stopped, straight):
    assert resume(stopped) == 0
    assert same_weights(stopped, straight)
    assert losses(stopped) == losses(straight)
    assert saved(stopped) == ["best", "step-00000006", "step-00000008"]
    for kind in ("validation", "sample"):  # nothing twice, nothing left out
        steps = [[event["step"] for event in events(out, kind)] for out in (stopped, straight)]
        assert steps[0] == steps[1]


def test_what_a_run_shows_and_how_it_computes_may_change_and_its_weights_stay(stopped, straight):
    changes = ["--eval-every", 1, "--sample-every", 2, "--save-every", 1, "--log-every", 2, "--workers", 1, "--keep", 1]
    changes += ["--gradient-checkpointing"]
    assert resume(stopped, *changes) == 0
    assert same_weights(stopped, straight)
    config = read_config(stopped / "config.toml")
    assert (config.eval_every, config.workers, config.keep) == (1, 1, 1)
    event = events(stopped, "resume")[0]
    assert event["checkpoint"] == "step-00000006"
    assert event["changed"] == {
        "workers": 1,
        "gradient_checkpointing": True,
        "eval_every": 1,
        "sample_every": 2,
        "save_every": 1,
        "keep": 1,
        "log_every": 2,
    }


def test_each_part_of_a_run_has_its_environment_in_the_log_and_in_its_checkpoints(stopped):
    """A run may be resumed with another torch, or on another machine, which explains why its numbers differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        assert resume(stopped) == 0
    finally:
        torch.set_num_threads(threads)
    parts = ("header", "step-00000006"), ("resume", "step-00000008")
    for (kind, name), expected in zip(parts, (threads, threads + 1), strict=True):
        found = [events(stopped, kind)[0]["environment"], manifest(stopped, name)["environment"]]
        assert found[0] == found[1]
        assert (found[0]["threads"], found[0]["torch"]) == (expected, torch.__version__)


def test_a_longer_run_keeps_its_schedule(stopped, straight):
    assert resume(stopped, "--steps", 12) == 0
    rates = [event["lr"] for event in events(stopped, "step")]
    assert rates[:8] == [event["lr"] for event in events(straight, "step")]
    assert rates[8:] == [1e-3] * 4
    assert [event["step"] for event in events(stopped, "end")] == [6, 12]


def test_a_shorter_run_than_the_checkpoint_is_an_error(stopped, capsys):
    assert resume(stopped, "--steps", 5) == 2
    assert "steps=5 is before step 6 of" in capsys.readouterr().err
    assert read_config(stopped / "config.toml").steps == 8


def test_a_run_that_is_done_has_nothing_to_do(straight, capsys):
    before = (straight / "log.jsonl").read_bytes()
    assert resume(straight) == 0
    assert "all 8 steps are done; --steps N trains longer" in capsys.readouterr().err
    assert (straight / "log.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("kept", "first", "message"),
    [((), 0, "has no checkpoint yet; the run starts at its first step"), (("best",), 3, "resuming at step 3 of 8")],
    ids=["nothing", "best"],
)
def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    stopped, straight, capsys, kept, first, message
):
    for name in set(saved(stopped)) - set(kept):
        shutil.rmtree(stopped / "checkpoints" / name)
    assert resume(stopped) == 0
    assert message in capsys.readouterr().err
    assert events(stopped, "resume")[0]["step"] == first
    assert same_weights(stopped, straight)
    assert losses(stopped) == losses(straight)
    assert shown_steps(stopped) == shown_steps(straight)


def test_a_damaged_checkpoint_is_an_error_and_the_one_it_names_goes_on(stopped, straight, capsys):
    damaged = stopped / "checkpoints" / "step-00000006" / "state.pt"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    before = (stopped / "log.jsonl").read_bytes()
    assert resume(stopped) == 1
    shown = capsys.readouterr().err
    assert "state.pt: was cut off" in shown
    assert (stopped / "log.jsonl").read_bytes() == before
    named = Path(shown.split("go on from it with --resume ")[1].split()[0])
    assert named.name == "step-00000004"
    assert resume(named) == 0
    assert same_weights(stopped, straight)
    assert losses(stopped) == losses(straight)
    assert saved(stopped) == ["best", "step-00000004", "step-00000008"]


def test_what_a_killed_process_left_is_removed(stopped):
    (stopped / "checkpoints" / ".saving-step-00000007").mkdir()
    with (stopped / "log.jsonl").open("ab") as file:
        file.write(b'{"event": "step", "st')
    assert resume(stopped) == 0
    assert saved(stopped) == ["best", "step-00000006", "step-00000008"]
    assert [event["step"] for event in events(stopped, "step")] == list(range(8))


def test_what_cannot_be_removed_stops_a_run_with_a_message(stopped, monkeypatch, capsys):
    def refuse(path, **options):
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    (stopped / "checkpoints" / ".saving-step-00000007").mkdir()
    monkeypatch.setattr(shutil, "rmtree", refuse)
    assert resume(stopped) == 1
    shown = capsys.readouterr().err
    assert ".saving-step-00000007: cannot be removed or renamed (Operation not permitted)" in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda out: edit(out, "lr = 0.01", "lr = 0.02"),
            "the checkpoint of another run: lr is 0.01 there and 0.02 here",
        ),
        (lambda out: edit(out, "n_layer = 2", "n_layer = 1"), "n_layer is 2 there and 1 here"),
        (lambda out: write_text(out.parent, words=299), "the text has changed since"),
    ],
    ids=["lr", "n_layer", "text"],
)
def test_another_configuration_or_text_is_an_error_and_changes_nothing(stopped, capsys, change, message):
    change(stopped)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    assert resume(stopped) == 2
    assert message in capsys.readouterr().err
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


def test_a_text_that_was_moved_is_named_by_a_flag(stopped, straight, capsys):
    text = stopped.parent / "text.txt"
    moved = text.rename(stopped.parent / "moved.txt")
    assert resume(stopped) == 1
    assert "text.txt: cannot be read" in capsys.readouterr().err
    text.write_text(moved.read_text().replace("bad", "add", 1))
    assert resume(stopped, "--text", text) == 2
    assert "the text has changed since" in capsys.readouterr().err
    assert resume(stopped, "--text", moved) == 0
    assert same_weights(stopped, straight)
    assert read_config(stopped / "config.toml").text == str(moved)


def edit(out, old, new):
    path = out / "config.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
