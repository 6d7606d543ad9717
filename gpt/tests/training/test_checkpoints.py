"""Checkpoints: bitwise what was saved, whole or absent, and every damage a named error with advice."""

import errno
import json
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from gpt.errors import (
    CheckpointCorrupt,
    CheckpointMissing,
    CheckpointNotRemoved,
    CheckpointNotSaved,
    CheckpointTooNew,
)
from gpt.training import checkpoints as module
from gpt.training.checkpoints import Checkpoints, Snapshot, load, sha256


def snapshot(step, size=10):
    """Return a snapshot whose weights and state depend on the step."""
    generator = torch.Generator().manual_seed(step)
    moments = {"exp_avg": torch.rand(size, generator=generator), "step": torch.tensor(float(step))}
    state = {"optimizer": {"state": {0: moments}, "param_groups": [{"lr": 1e-3, "betas": (0.9, 0.95)}]}, "best": None}
    weights = {"b": torch.rand(size, generator=generator), "a": torch.rand(3, 2, generator=generator).bfloat16()}
    return Snapshot(step, weights, state, {"config": {"steps": step}, "ranks": 1})


def contents(folder):
    """Return the bytes of every file in a folder, by path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def saved(tmp_path):
    """Return checkpoints of the steps 1 and 2, and the best one of step 1."""
    made = Checkpoints(tmp_path / "checkpoints", keep=2)
    made.save(snapshot(1))
    made.save_best(snapshot(1))
    made.save(snapshot(2))
    return made


def test_a_checkpoint_comes_back_bitwise(saved):
    found, expected = load(saved.newest()), snapshot(2)
    assert (found.step, found.identity) == (2, expected.identity)
    assert found.weights.keys() == expected.weights.keys()
    for name, tensor in expected.weights.items():
        assert found.weights[name].dtype == tensor.dtype
        assert torch.equal(found.weights[name], tensor)
    moments = found.state["optimizer"]["state"][0]
    assert torch.equal(moments["exp_avg"], expected.state["optimizer"]["state"][0]["exp_avg"])
    assert found.state["optimizer"]["param_groups"] == expected.state["optimizer"]["param_groups"]


def test_the_same_weights_are_the_same_bytes(tmp_path, saved):
    other = Checkpoints(tmp_path / "other").save(snapshot(2))
    names = ("weights.safetensors", "state.pt")
    assert all((other / name).read_bytes() == (saved.newest() / name).read_bytes() for name in names)


def test_the_last_ones_are_kept_in_the_order_of_steps(tmp_path):
    made = Checkpoints(tmp_path, keep=2)
    for step in (1, 99_999_999, 100_000_000):  # as text, the last one is before the one before it
        made.save(snapshot(step))
    assert list(made.by_step()) == [99_999_999, 100_000_000]
    assert made.newest() == tmp_path / "step-100000000"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-100000000", "step-99999999"]


def test_the_best_one_is_a_copy_of_its_own(saved):
    shutil.rmtree(saved.folder / "step-00000001")
    for path in (saved.folder / "best").iterdir():
        assert not path.is_symlink()
        assert path.stat().st_nlink == 1
    assert load(saved.folder / "best").step == 1
    saved.save_best(snapshot(2))
    assert load(saved.folder / "best").step == 2


def test_the_best_one_is_the_newest_only_if_it_is_later(saved):
    assert saved.newest().name == "step-00000002"
    saved.save_best(snapshot(2))
    assert saved.newest().name == "step-00000002"
    saved.save_best(snapshot(3))
    assert saved.newest().name == "best"
    cut(saved.folder / "best" / "manifest.json")  # so that nobody knows its step
    assert saved.newest().name == "step-00000002"
    for step in (1, 2):
        shutil.rmtree(saved.folder / f"step-0000000{step}")
    assert saved.newest().name == "best"


def test_what_is_after_a_step_is_removed_the_best_one_included(saved):
    assert saved.remove_after(2) == []
    assert saved.remove_after(1) == ["step-00000002"]
    assert sorted(path.name for path in saved.folder.iterdir()) == ["best", "step-00000001"]
    assert saved.remove_after(0) == ["step-00000001", "best"]
    assert list(saved.folder.iterdir()) == []


def test_a_checkpoint_of_the_same_step_replaces_the_first_one(saved):
    saved.save(Snapshot(2, snapshot(7).weights, {}, {}))
    assert torch.equal(load(saved.newest()).weights["b"], snapshot(7).weights["b"])
    assert sorted(path.name for path in saved.folder.iterdir()) == ["best", "step-00000001", "step-00000002"]


def test_everything_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Without fsync, a computer that loses power may have the name and not the contents."""
    order = []
    fsync, rename = os.fsync, type(tmp_path).rename

    def note_fsync(descriptor):
        order.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def note_rename(path, target):
        order.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(type(tmp_path), "rename", note_rename)
    Checkpoints(tmp_path / "c").save(snapshot(1))
    files = ["weights.safetensors", "state.pt", "manifest.json"]
    assert order == [*files, ".saving-step-00000001", "rename", "c"]


# ---------------------------------------------------------------------------- damage


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    raw = bytearray(path.read_bytes())
    raw[-5] ^= 1
    path.write_bytes(raw)


def remove(path):
    path.unlink()


def edit(**changes):
    return lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def text(raw):
    return lambda path: path.write_text(raw)


@pytest.mark.parametrize(
    ("file", "damage", "error", "message"),
    [
        ("weights.safetensors", cut, CheckpointCorrupt, r"was cut off; it has \d+ bytes, expected \d+"),
        ("state.pt", cut, CheckpointCorrupt, "was cut off"),
        ("manifest.json", cut, CheckpointCorrupt, "is not a checkpoint's manifest"),
        ("weights.safetensors", flip, CheckpointCorrupt, "has the sha256 [0-9a-f]{64}, expected [0-9a-f]{64}"),
        ("state.pt", flip, CheckpointCorrupt, "has the sha256"),
        ("manifest.json", edit(step=3), CheckpointCorrupt, "was changed after it was written"),
        ("manifest.json", edit(config={}), CheckpointCorrupt, "was changed after it was written"),
        ("manifest.json", edit(version="1"), CheckpointCorrupt, "was changed after it was written"),
        ("manifest.json", edit(version=2), CheckpointTooNew, "has the format 2, and this program reads 1 and older"),
        ("manifest.json", text("[]"), CheckpointCorrupt, "is not a checkpoint's manifest"),
        ("manifest.json", text("{}"), CheckpointCorrupt, "is not a checkpoint's manifest"),
        ("weights.safetensors", remove, CheckpointMissing, r"weights.safetensors: is missing; expected \d+ bytes"),
        ("state.pt", remove, CheckpointMissing, "state.pt: is missing"),
        ("manifest.json", remove, CheckpointMissing, "manifest.json: is missing"),
    ],
)
def test_a_damaged_checkpoint_is_an_error_that_names_the_file_and_a_whole_one(saved, file, damage, error, message):
    newest = saved.newest()
    damage(newest / file)
    with pytest.raises(error, match=message):
        load(newest)
    if error is not CheckpointTooNew:
        with pytest.raises(error, match=rf"{message}.*step-00000001 is whole: go on from it with --resume .*step-0000"):
            saved.load(newest)


def test_the_advice_passes_over_other_damaged_checkpoints(saved):
    flip(saved.newest() / "state.pt")
    flip(saved.folder / "step-00000001" / "state.pt")
    with pytest.raises(CheckpointCorrupt, match=r"best is whole: go on from it with --resume .*checkpoints/best"):
        saved.load(saved.newest())
    flip(saved.folder / "best" / "state.pt")
    with pytest.raises(CheckpointCorrupt, match="no other checkpoint of the run is whole: start it again"):
        saved.load(saved.newest())


def test_a_checkpoint_that_is_not_there_is_an_error(saved):
    with pytest.raises(CheckpointMissing, match="step-00000009: is not there"):
        load(saved.folder / "step-00000009")
    assert Checkpoints(saved.folder / "none").newest() is None


class Code:
    def __reduce__(self):
        return (os.mkdir, (Code.target,))


def test_code_in_a_state_is_not_run_even_if_its_checksum_is_right(saved, tmp_path):
    Code.target = str(tmp_path / "the code ran")
    newest = saved.newest()
    for write in (
        lambda path: torch.save({"x": Code()}, path),
        lambda path: path.write_bytes(pickle.dumps(Code(), protocol=2)),
    ):
        write(newest / "state.pt")
        path = newest / "manifest.json"
        manifest = json.loads(path.read_text())
        entry = {"sha256": sha256(newest / "state.pt"), "bytes": (newest / "state.pt").stat().st_size}
        manifest["files"]["state.pt"] = entry
        manifest["sha256"] = module._own_sha256(manifest)
        path.write_text(json.dumps(manifest))
        with pytest.raises(CheckpointCorrupt, match=r"step-00000002: (state.pt has more than|cannot be read)"):
            load(newest)
    assert not (tmp_path / "the code ran").exists()


# ---------------------------------------------------------------------------- a full disk, a killed process


@pytest.mark.parametrize("part", ["save_file", "torch.save", "manifest", "fsync", "rename"])
@pytest.mark.parametrize("method", ["save", "save_best"])
def test_on_a_full_disk_the_old_checkpoints_stay_and_nothing_else(saved, monkeypatch, part, method):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    before = contents(saved.folder)

    def fail(*_, **__):
        raise full

    class FullFile:
        """A file on a full disk: torch.save hides its error behind one of its own."""

        write = flush = fail

    owner, name = {
        "save_file": ("safetensors.torch", "save_file"),
        "torch.save": ("torch", "save"),
        "manifest": ("pathlib.Path", "write_text"),
        "fsync": ("os", "fsync"),
        "rename": ("pathlib.Path", "rename"),
    }[part]
    if part == "torch.save":
        save = torch.save
        monkeypatch.setattr(torch, "save", lambda state, file: save(state, FullFile()))
    else:
        monkeypatch.setattr(f"{owner}.{name}", fail)
    with pytest.raises(
        CheckpointNotSaved, match=r"checkpoint of step 3 could not be saved \(No space left on device\).*make room"
    ):
        getattr(saved, method)(snapshot(3))
    monkeypatch.undo()
    assert contents(saved.folder) == before
    assert load(saved.newest()).step == 2


@pytest.mark.parametrize("method", ["save", "save_best"])
def test_a_checkpoint_that_could_not_be_replaced_stays(saved, monkeypatch, method):
    """The old one has been moved aside when the new one cannot take its name."""
    before, rename = contents(saved.folder), Path.rename

    def fail_for_new_ones(path, target):
        if path.name.startswith(".saving-"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_new_ones)
    with pytest.raises(CheckpointNotSaved, match="Input/output error"):
        getattr(saved, method)(Snapshot(2, snapshot(3).weights, {}, {}))
    assert contents(saved.folder) == before


def test_a_file_that_may_not_grow_is_an_error_too(saved):
    """A real limit: safetensors and torch report it each in its own way, and neither as an OSError."""
    before = contents(saved.folder)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    large_state = Snapshot(3, snapshot(1).weights, snapshot(3, size=50_000).state, {})
    for large in (snapshot(3, size=50_000), large_state):  # 200 KB of weights, 200 KB of moments
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        try:
            with pytest.raises(CheckpointNotSaved, match="File too large"):
                saved.save(large)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert contents(saved.folder) == before


def refuse(monkeypatch, name):
    """Let no folder of a name be renamed or removed."""
    rename, rmtree = Path.rename, shutil.rmtree

    def guarded(original):
        def act(path, *others, **options):
            if path.name == name and not options.get("ignore_errors"):
                raise OSError(errno.EPERM, os.strerror(errno.EPERM))
            return original(path, *others, **options)

        return act

    monkeypatch.setattr(Path, "rename", guarded(rename))
    monkeypatch.setattr(shutil, "rmtree", guarded(rmtree))


def test_an_old_checkpoint_that_cannot_be_removed_is_a_message(saved, monkeypatch, capsys):
    refuse(monkeypatch, "step-00000001")
    said = []
    for checkpoints in (saved, Checkpoints(saved.folder, keep=2, say=said.append)):
        assert load(checkpoints.save(snapshot(3))).step == 3
        assert list(saved.by_step()) == [1, 2, 3]
    message = "step-00000001: cannot be removed or renamed (Operation not permitted); remove it by hand"
    assert message in capsys.readouterr().err
    assert message in said[0]
    assert said[0].endswith("; the run goes on")


@pytest.mark.parametrize("name", ["step-00000002", ".saving-step-00000009", ".replaced-best", ".replaced-gone"])
def test_a_later_checkpoint_or_remains_that_cannot_be_removed_are_a_named_error(saved, monkeypatch, name):
    (saved.folder / name).mkdir(exist_ok=True)
    refuse(monkeypatch, name)
    with pytest.raises(
        CheckpointNotRemoved, match=rf"{name}: cannot be removed or renamed \(Operation not permitted\)"
    ):
        saved.remove_after(1) if name == "step-00000002" else saved.repair()


def test_a_file_that_cannot_be_read_is_a_named_error(saved, monkeypatch):
    def fail(path):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(module, "sha256", fail)
    with pytest.raises(CheckpointCorrupt, match=r"weights.safetensors: cannot be read \(Input/output error\)"):
        load(saved.newest())


PLACES = [(module, "write_files", 1), (module, "flush_to_disk", 4), (Path, "rename", 1), (Path, "rename", 2)]
PLACES += [(module, "flush_to_disk", 5), (module, "replace_folder", 1)]


@pytest.mark.parametrize(("owner", "name", "number"), PLACES, ids=lambda value: getattr(value, "__name__", str(value)))
@pytest.mark.parametrize("method", ["save", "save_best"])
def test_a_process_that_is_killed_while_it_saves_leaves_the_old_or_the_new_one(saved, owner, name, number, method):
    """A forked child replaces a checkpoint, and is killed when it has called the function so many times."""
    child = os.fork()
    if child == 0:
        kill_after(owner, name, number)
        getattr(saved, method)(Snapshot(2, snapshot(3).weights, {}, {}))
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    saved.repair()
    assert sorted(path.name for path in saved.folder.iterdir()) == ["best", "step-00000001", "step-00000002"]
    replaced = load(saved.newest() if method == "save" else saved.folder / "best").weights["b"]
    old = snapshot(2 if method == "save" else 1).weights["b"]
    assert torch.equal(replaced, old) or torch.equal(replaced, snapshot(3).weights["b"])


def kill_after(owner, name, number):
    """Make a call of a function the last thing that this process does."""
    original, calls = getattr(owner, name), []

    def call_and_die(*arguments):
        original(*arguments)
        calls.append(1)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(owner, name, call_and_die)
