"""A checkpoint as it lies on the disk: tensors by name, and what it says about its sizes and its vocabulary."""

from __future__ import annotations

import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import HarnessError
from harness.core.shipped_packages import shipped_package
from harness.subjects.adapters.construction.setting_names import names_sizes

# Names, not imports: the harness does not depend on gpt. The trainer's own function verifies every checksum.
TRAINER_CHECKPOINT = "gpt.training.checkpoints"
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class StoredCheckpoint:
    """The tensors of a checkpoint and what is written beside them.

    `settings`: the sizes by any names, such as `n_layer`; empty if none are stored. `vocabulary`: the text from which
    the vocabulary of a run of gpt.train is made; "" for others. `step`: the optimizer steps of the training, or None.
    `is_huggingface`: True for a directory of `save_pretrained`.
    """

    name: str
    tensors: Mapping[str, Tensor]
    settings: Mapping[str, Any] = field(default_factory=dict)
    vocabulary: str = ""
    vocabulary_sha256: str = ""
    step: int | None = None
    is_huggingface: bool = False


def read_checkpoint(spec: str) -> StoredCheckpoint:
    """Return the checkpoint that a path names; nothing is unpickled.

    It is the folder of a run of gpt.train or of one of its checkpoints, a Hugging Face directory (also `hf:DIR`), a
    .safetensors file, or a file that `torch.load(weights_only=True)` reads. Raises HarnessError for anything else.
    """
    path = Path(spec.removeprefix("hf:"))
    if path.is_dir():
        if (path / "checkpoints").is_dir() or (path / MANIFEST).is_file():
            return _of_the_trainer(path)
        if (path / "config.json").is_file():
            return _of_hugging_face(path)
        raise HarnessError(
            f"{path}: no checkpoint is in this folder; expected {MANIFEST} (a checkpoint of gpt.train), checkpoints/ "
            "(its run) or config.json with model.safetensors (a Hugging Face directory)"
        )
    if not path.is_file():
        raise HarnessError(f"{path}: is not there; expected the file or the folder of a checkpoint")
    if path.suffix == ".safetensors":
        return StoredCheckpoint(str(path), _safetensors(path))
    return _of_torch(path)


def _of_the_trainer(path: Path) -> StoredCheckpoint:
    with shipped_package("gpt"):
        module: Any = importlib.import_module(TRAINER_CHECKPOINT)
    folder = path
    if (path / "checkpoints").is_dir():
        found = module.Checkpoints(path / "checkpoints").newest()
        if found is None:
            raise HarnessError(f"{path}: the run has no checkpoint yet; train it until its first one")
        folder = found
    try:
        snapshot = module.load(folder)
    except Exception as error:  # the trainer's own errors, which the harness does not import
        raise HarnessError(str(error)) from error
    vocabulary = folder.parent.parent / "vocabulary.json"
    stored = snapshot.identity.get("vocabulary", {})
    return StoredCheckpoint(
        str(folder),
        snapshot.weights,
        {**snapshot.identity.get("config", {}), "vocab_size": stored.get("size")},
        vocabulary.read_text(encoding="utf-8").strip() if vocabulary.is_file() else "",
        stored.get("sha256", ""),
        snapshot.step,
    )


def _of_hugging_face(path: Path) -> StoredCheckpoint:
    files = sorted(path.glob("*.safetensors"))
    if not files:
        raise HarnessError(
            f"{path}: there is no .safetensors file beside config.json; save it with "
            "model.save_pretrained(DIR, safe_serialization=True): nothing is unpickled here"
        )
    try:
        settings = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise HarnessError(f"{path / 'config.json'}: is not JSON ({error}); fetch it again") from error
    tensors = {name: tensor for file in files for name, tensor in _safetensors(file).items()}
    return StoredCheckpoint(f"hf:{path}", tensors, settings, is_huggingface=True)


def _safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise HarnessError(
            f"{path}: not a whole safetensors file ({error}); it is truncated or damaged: save it again"
        ) from error


def _of_torch(path: Path) -> StoredCheckpoint:
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle's error, which is not imported here, and torch's for other files
        reason = " ".join(str(error).split())[:200]
        raise HarnessError(
            f"{path}: torch.load(weights_only=True) refuses it ({reason}); it is no file of torch.save, or reading it "
            "would run code that it brings, which this program never does: save the tensors alone, with "
            "torch.save(model.state_dict(), FILE) or safetensors.torch.save_model(model, FILE)"
        ) from error
    tensors = _largest_state(contents)
    if not tensors:
        raise HarnessError(f"{path}: has no dict of tensors; expected model.state_dict(), alone or inside a dict")
    step = next((contents[key] for key in ("iter_num", "step", "steps", "global_step") if key in contents), None)
    return StoredCheckpoint(str(path), tensors, _settings(contents), step=step if isinstance(step, int) else None)


def _largest_state(contents: Any) -> dict[str, Tensor]:
    """Return the dict with the most named tensors, at any depth: an optimizer's state has numbers for names."""
    found: dict[str, Tensor] = {}
    if isinstance(contents, Mapping):
        found = {key: each for key, each in contents.items() if isinstance(key, str) and isinstance(each, Tensor)}
        for value in contents.values():
            found = max(found, _largest_state(value), key=len)
    return found


def _settings(contents: Any) -> dict[str, Any]:
    """Return the first dict whose keys name at least three of a GPT's five sizes; {} if there is none."""
    if not isinstance(contents, Mapping):
        return {}
    names = [key for key in contents if isinstance(key, str)]
    if names_sizes(names):
        return {name: contents[name] for name in names}
    return next((found for value in contents.values() if (found := _settings(value))), {})
