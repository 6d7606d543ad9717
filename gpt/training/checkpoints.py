"""The checkpoints of a run: each a folder that is whole or absent, verified by its checksums when it is read."""

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from gpt.errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMissing,
    CheckpointNotRemoved,
    CheckpointNotSaved,
    CheckpointTooNew,
)

VERSION = 1
"""The version of the format. Programs read their own and older ones."""

WEIGHTS, STATE, MANIFEST = "weights.safetensors", "state.pt", "manifest.json"
BEST = "best"


@dataclass(frozen=True)
class Snapshot:
    """What a checkpoint contains: the step, the weights, everything else that training changes, and its identity."""

    step: int
    weights: Mapping[str, Tensor]
    state: Mapping[str, Any]
    """What `torch.load(weights_only=True)` reads: tensors, numbers, strings, lists and dicts."""
    identity: Mapping[str, Any]
    """What the run is, as JSON: the configuration, the vocabulary, the text's checksum, the number of ranks.

    Beside these, the environment in which the checkpoint was made.
    """


class Checkpoints:
    """The folder of a run's checkpoints: `step-00000100` for the last `keep` of them, and `best`.

    `say` is given the message of what goes wrong and stops nothing; without it, the message goes to stderr.
    """

    def __init__(self, folder: Path, *, keep: int = 2, say: Callable[[str], object] | None = None) -> None:
        self.folder, self.keep = folder, keep
        self.say = say or (lambda message: print(message, file=sys.stderr))

    def by_step(self) -> dict[int, Path]:
        """Return the checkpoints by step, oldest first, without `best`."""
        found = {}
        for path in self.folder.glob("step-*"):
            if number := re.fullmatch(r"step-(\d+)", path.name):
                found[int(number[1])] = path
        return dict(sorted(found.items()))

    def newest(self) -> Path | None:
        """Return the checkpoint of the latest step, None if there is none yet; the best one only if it is later."""
        step, last = next(reversed(self.by_step().items()), (-1, None))
        best = self.folder / BEST
        if best.exists() and (last is None or self._best_is_after(step)):
            return best
        return last

    def _best_is_after(self, step: int) -> bool:
        """Return True if the best checkpoint is of a later step; of a damaged one nobody knows."""
        try:
            return bool(_parse_manifest(self.folder / BEST / MANIFEST)["step"] > step)
        except CheckpointError:
            return False

    def load(self, folder: Path) -> Snapshot:
        """Return what one of the checkpoints contains.

        Raises the errors of `load`; for a damaged one the message names another one that is whole.
        """
        try:
            return load(folder)
        except (CheckpointCorrupt, CheckpointMissing) as error:
            others = (path for path in (*reversed(self.by_step().values()), self.folder / BEST) if path != folder)
            whole = next((path for path in others if is_whole(path)), None)
            advice = (
                f"{whole} is whole: go on from it with --resume {whole}"
                if whole
                else "no other checkpoint of the run is whole: start it again with another --out"
            )
            raise type(error)(f"{error}; {advice}") from error

    def save(self, snapshot: Snapshot) -> Path:
        """Write the checkpoint of a step, then remove all but the last `keep`, as far as possible; return its folder.

        Raises `CheckpointNotSaved`; what was there before is then unchanged.
        """
        target = self._write(f"step-{snapshot.step:08d}", snapshot)
        for step, path in list(self.by_step().items())[: -self.keep]:
            if step < snapshot.step:
                try:
                    remove(path)
                except CheckpointNotRemoved as error:
                    self.say(f"{error}; the run goes on")
        return target

    def save_best(self, snapshot: Snapshot) -> Path:
        """Write the checkpoint with the lowest validation loss, a copy of its own; return its folder.

        Raises `CheckpointNotSaved`; the best one so far is then unchanged.
        """
        return self._write(BEST, snapshot)

    def remove_after(self, step: int) -> list[str]:
        """Remove the checkpoints after a step, which a run that resumes there replaces; return their names.

        The best one too: it may be of a course that the run does not take again. Raises `CheckpointNotRemoved`.
        """
        later = [path for number, path in self.by_step().items() if number > step]
        if self._best_is_after(step):
            later.append(self.folder / BEST)
        for path in later:
            remove(path)
        return [path.name for path in later]

    def repair(self) -> None:
        """Remove what a process that was killed while it saved has left, and put a replaced folder back.

        Raises `CheckpointNotRemoved`.
        """
        for path in self.folder.glob(".replaced-*"):
            target = self.folder / path.name.removeprefix(".replaced-")
            with _removing(path):
                if target.exists():
                    shutil.rmtree(path)
                else:
                    path.rename(target)
        for path in self.folder.glob(".saving-*"):
            with _removing(path):
                shutil.rmtree(path)

    def _write(self, name: str, snapshot: Snapshot) -> Path:
        target, partial = self.folder / name, self.folder / f".saving-{name}"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            write_files(partial, snapshot)
            replace_folder(partial, target)
        except OSError as error:
            kept = [path.name for path in self.by_step().values()]
            raise CheckpointNotSaved(
                f"{target}: the checkpoint of step {snapshot.step} could not be saved ({error.strerror or error}); "
                f"nothing of it is left, and {', '.join(kept) or 'no earlier checkpoint'} is as before: "
                "make room, then resume the run"
            ) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return target


# ---------------------------------------------------------------------------- writing


def write_files(folder: Path, snapshot: Snapshot) -> None:
    """Write the files of a checkpoint into an empty folder, down to the disk. Raises `OSError`."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        save_file(dict(snapshot.weights), folder / WEIGHTS)
        with (folder / STATE).open("wb") as file:
            torch.save(dict(snapshot.state), file)
    except SafetensorError as error:  # it wraps the operating system's error as text
        raise OSError(str(error)) from error
    except RuntimeError as error:  # so does torch, but the file object's own error is the context of it
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    paths = [folder / WEIGHTS, folder / STATE]
    files = {path.name: {"sha256": sha256(path), "bytes": path.stat().st_size} for path in paths}
    manifest = {"version": VERSION, "step": snapshot.step, "files": files, **snapshot.identity}
    manifest["sha256"] = _own_sha256(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    for path in (*paths, folder / MANIFEST, folder):
        flush_to_disk(path)


def replace_folder(partial: Path, target: Path) -> None:
    """Rename a finished folder to its final name. A folder that has the name is removed after that, not before."""
    aside = target.with_name(f".replaced-{target.name}")
    if target.exists():
        shutil.rmtree(aside, ignore_errors=True)
        target.rename(aside)
    try:
        partial.rename(target)
    except OSError:
        if aside.exists():
            aside.rename(target)
        raise
    flush_to_disk(target.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove a checkpoint; its name goes first, so that no half of it can be taken for a checkpoint.

    Raises `CheckpointNotRemoved` if it keeps its name; what is left under the other one goes with the next `repair`.
    """
    doomed = folder.with_name(f".saving-{folder.name}")
    with _removing(folder):
        folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


@contextmanager
def _removing(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CheckpointNotRemoved(
            f"{path}: cannot be removed or renamed ({error.strerror}); remove it by hand, or make its folder writable"
        ) from error


def flush_to_disk(path: Path) -> None:
    """Return when the contents of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Return the sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _own_sha256(manifest: Mapping[str, Any]) -> str:
    """Return the checksum of a manifest, over everything but the checksum itself."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------- reading


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint after every file of it has been verified.

    Raises `CheckpointMissing`, `CheckpointTooNew` or `CheckpointCorrupt`.
    """
    if not folder.is_dir():
        raise CheckpointMissing(f"{folder}: is not there; expected the folder of a checkpoint")
    manifest = _parse_manifest(folder / MANIFEST)
    for problem in _problems(folder, manifest):
        raise problem
    return manifest


def is_whole(folder: Path) -> bool:
    """Return True if every file of a checkpoint is what it was when it was written."""
    try:
        read_manifest(folder)
    except CheckpointError:
        return False
    return True


def load(folder: Path) -> Snapshot:
    """Return what a verified checkpoint contains, on the CPU.

    Raises the errors of `read_manifest`, and `CheckpointCorrupt` for files that do not contain what they should.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    manifest = read_manifest(folder)
    try:
        weights = load_file(folder / WEIGHTS)
        state = torch.load(folder / STATE, map_location="cpu", weights_only=True)  # never a pickle with code in it
    except (SafetensorError, RuntimeError, ValueError, EOFError, KeyError, ImportError) as error:
        raise CheckpointCorrupt(f"{folder}: cannot be read though its checksums are right ({error})") from error
    except Exception as error:  # pickle.UnpicklingError, which this package does not import
        raise CheckpointCorrupt(f"{folder}: {STATE} has more than tensors and plain values ({error})") from error
    identity = {key: value for key, value in manifest.items() if key not in ("version", "step", "files", "sha256")}
    return Snapshot(manifest["step"], weights, state, identity)


def _parse_manifest(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise CheckpointMissing(f"{path}: is missing; without it nothing says what the checkpoint contains")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version, step, files = manifest["version"], manifest["step"], manifest["files"]
        well_formed = isinstance(version, int) and isinstance(step, int) and isinstance(files, dict)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"{path}: is not a checkpoint's manifest ({error!r})") from error
    if well_formed and version > VERSION:
        raise CheckpointTooNew(
            f"{path}: has the format {version}, and this program reads {VERSION} and older; "
            "use the program that wrote it, or a newer one"
        )
    if not well_formed or manifest.get("sha256") != _own_sha256(manifest):
        raise CheckpointCorrupt(f"{path}: was changed after it was written; its checksum is not the one in it")
    return dict(manifest)


def _problems(folder: Path, manifest: Mapping[str, Any]) -> Iterator[CheckpointError]:
    """Yield what is wrong with the files that a manifest lists."""
    for name, expected in manifest["files"].items():
        path = folder / name
        try:
            found_sha256 = sha256(path) if path.is_file() else None
        except OSError as error:
            yield CheckpointCorrupt(f"{path}: cannot be read ({error.strerror}); expected {expected['bytes']:,} bytes")
            continue
        if found_sha256 is None:
            yield CheckpointMissing(f"{path}: is missing; expected {expected['bytes']:,} bytes")
        elif path.stat().st_size != expected["bytes"]:
            found = path.stat().st_size
            what = "was cut off" if found < expected["bytes"] else "was changed"
            yield CheckpointCorrupt(f"{path}: {what}; it has {found:,} bytes, expected {expected['bytes']:,}")
        elif found_sha256 != expected["sha256"]:
            yield CheckpointCorrupt(
                f"{path}: has the sha256 {found_sha256}, expected {expected['sha256']}; "
                "it was changed or damaged after it was written"
            )
