"""Resuming: a run that was killed and resumed ends in the bytes of one that was never stopped."""

import errno
import os
import shutil
import signal
import socket
import sys
from pathlib import Path

import pytest
import torch

from gpt.tests.training.small_run import FLAGS, events, losses, manifest, resume, saved, train, write_text
from gpt.train import main
from gpt.training.checkpoints import Checkpoints, load
from gpt.training.config_file import read_config
from gpt.training.run import Run
from gpt.training.run_folder import FolderLock
from gpt.training.trainer import Trainer

# 945 tokens to train on: an epoch is 15 steps of 2 x 4 windows of 8, so that the kill is in the middle of the second.
# A sample has just been drawn then, and the last validation is one step back.
STEPS, KILLED = 22, 16
HARD = ["--steps", STEPS, "--dropout", 0.2, "--accumulation", 2, "--eval-every", 5, "--keep", 9]


def kill_after_saving(method="save", step=KILLED):
    """Make the checkpoint of a step the last thing that rank 0 does."""
    save = getattr(Checkpoints, method)

    def save_and_die(checkpoints, snapshot):
        path = save(checkpoints, snapshot)
        if snapshot.step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return path

    setattr(Checkpoints, method, save_and_die)


def arguments(out):
    return [str(word) for word in (*FLAGS, "--text", out.parent / "text.txt", "--out", out, *HARD)]


def forked(action):
    """Start an action in a process of its own, which needs no imports; return its id. It ends with the result."""
    child = os.fork()
    if child == 0:
        status = 99  # of an exception
        try:
            status = action()
        finally:
            os._exit(status)
    return child


def ended(child):
    """Return the exit status of a process when it has ended, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def as_ranks(*words):
    """Run the program on two ranks, as torchrun starts them, and return their exit statuses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}

    def rank(number):
        os.environ |= address | {"RANK": str(number), "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
        return main([str(word) for word in words])

    children = [forked(lambda number=number: rank(number)) for number in range(2)]
    return [ended(child) for child in children]


def torchrun(action):
    """Do an action on two ranks, started by torchrun's own launcher, and return torchrun's exit status."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    ranks = {"min_nodes": 1, "max_nodes": 1, "nproc_per_node": 2, "run_id": "test", "max_restarts": 0}
    address = {"rdzv_backend": "c10d", "rdzv_endpoint": "localhost:0"}
    try:
        elastic_launch(LaunchConfig(**ranks, **address, start_method="fork", monitor_interval=0.05), action)()
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        return 1
    return 0


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
    assert ended(forked(lambda: kill_after_saving() or main(arguments(tmp_path / "killed")))) == -signal.SIGKILL
    assert Checkpoints(tmp_path / "killed" / "checkpoints").newest().name == f"step-{KILLED:08d}"
    assert ended(forked(lambda: resume(tmp_path / "killed"))) == 0
    check_same_end(tmp_path / "straight", tmp_path / "killed")


def test_so_does_a_run_on_two_ranks_that_torchrun_started(tmp_path, capfd):
    write_text(tmp_path)
    assert ended(forked(lambda: torchrun(lambda: kill_after_saving() or main(arguments(tmp_path / "killed"))))) == 1
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


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """Return the folder of a run that was stopped after 6 of 8 steps, between two checkpoints."""
    original = Trainer.train_step

    def step(trainer):
        if trainer.step == 5:
            signal.raise_signal(signal.SIGINT)
        return original(trainer)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", step)
        assert train(tmp_path / "stopped", "--dropout", 0.1) == 130
    return tmp_path / "stopped"


@pytest.fixture
def straight(tmp_path):
    """Return the folder of the same run, not stopped."""
    assert train(tmp_path / "straight", "--dropout", 0.1) == 0
    return tmp_path / "straight"


def shown_steps(out):
    """Return the steps of all best checkpoints, validations and samples in a log."""
    best = [event["step"] for event in events(out, "checkpoint") if event["name"] == "best"]
    return [best, *([event["step"] for event in events(out, kind)] for kind in ("validation", "sample"))]


def same_weights(one, other, name="step-00000008"):
    sums = [manifest(out, name)["files"]["weights.safetensors"] for out in (one, other)]
    return sums[0] == sums[1]


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
    assert resume(stopped, *changes) == 0
    assert same_weights(stopped, straight)
    config = read_config(stopped / "config.toml")
    assert (config.eval_every, config.workers, config.keep) == (1, 1, 1)
    event = events(stopped, "resume")[0]
    assert event["checkpoint"] == "step-00000006"
    assert event["changed"] == {
        "workers": 1,
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


# ---------------------------------------------------------------------------- two processes


@pytest.mark.parametrize("workers", [0, 1])
def test_a_folder_that_another_process_uses_is_left_alone(tmp_path, monkeypatch, capfd, workers):
    """As soon as that process was killed, its run can be resumed: workers that outlive it do not keep the folder."""
    out, (reading, writing) = tmp_path / "run", os.pipe()
    original = Trainer.train_step

    def step_and_wait(trainer):
        original(trainer)
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


# ---------------------------------------------------------------------------- real signals


def test_a_second_ctrl_c_ends_a_run_at_once(tmp_path, monkeypatch, capfd):
    write_text(tmp_path)

    def step(trainer):
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

    def step(trainer):
        if trainer.step == 5 and trainer.ranks.rank == 1:
            signal.raise_signal(signal.SIGTERM)
        return original(trainer)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert as_ranks(*FLAGS, "--text", tmp_path / "text.txt", "--out", tmp_path / "run") == [143, 143]
    assert events(tmp_path / "run", "end") == [{"event": "end", "step": 6, "reason": "terminated"}]
    assert "step-00000006" in saved(tmp_path / "run")
