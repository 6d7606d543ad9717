"""The measure of config.json: each setting that changes the model is applied or refused."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.loading.huggingface_files import (
    files_and_logits_with_setting,
    same_logits,
    save_with_huggingface,
)
from harness.oracle import model_cache
from harness.oracle.tokens import batch
from harness.subjects.protocols import Checkpoints
from harness.suites.measure_registry import Reading, measure

# Settings of config.json with which the same tensors are another model.
SETTINGS: dict[str, dict[str, Any]] = {
    "another n_head": {"n_head": 6},
    "another layer_norm_epsilon": {"layer_norm_epsilon": 1e-2},
    "another activation_function": {"activation_function": "relu"},
    "scale_attn_weights false": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx true": {"scale_attn_by_inverse_layer_idx": True},
    "tie_word_embeddings false": {"tie_word_embeddings": False},
}


@measure
def config_honoured(subject: Checkpoints, *, size: str) -> Reading:
    """Return True for each setting of config.json that the subject applies or refuses; details say which.

    A setting is applied if the logits are those of Hugging Face for the same directory, within rounding. A million
    layers must be refused before they are built: the file contains no weights for them.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        usual, published = _logits_with_setting(subject, size, {}, ids, Path(name, "as-published"))
        right = usual is not None and same_logits(usual, published)
        for place, setting in SETTINGS.items():
            logits, expected = _logits_with_setting(subject, size, setting, ids, Path(name, place.replace(" ", "-")))
            if logits is None:
                found[place] = "refused"
            elif usual is not None and torch.equal(logits, usual):
                found[place] = "ignored"
            else:  # a model that is not GPT-2 without the setting cannot be compared with GPT-2 that has it
                found[place] = "honoured" if same_logits(logits, expected) or not right else "done otherwise"
        found["a million layers"] = _answer_to_a_million_layers(subject, size, Path(name, "a-million-layers"))
    wrong = [f"{place}: {answer}" for place, answer in found.items() if answer not in ("honoured", "refused")]
    return Reading(
        {place: answer in ("honoured", "refused") for place, answer in found.items()},
        details={"answers": found, "hint": ", ".join(wrong)},
    )


def _logits_with_setting(
    subject: Checkpoints, size: str, setting: dict[str, Any], ids: Tensor, folder: Path
) -> tuple[Tensor | None, Tensor]:
    """Return the subject's logits for a directory with that setting (None if it refuses), and Hugging Face's."""
    folder.mkdir()
    files, expected = model_cache.cached_if_small(
        size, ("config", *sorted(setting.items())), lambda: files_and_logits_with_setting(size, setting, ids)
    )
    for file, content in files.items():
        (folder / file).write_bytes(content)
    try:
        with torch.no_grad():
            return subject.load_checkpoint(folder).logits(ids), expected
    except Exception:
        return None, expected


def _answer_to_a_million_layers(subject: Checkpoints, size: str, folder: Path) -> str:
    """Return "refused", "ignored", or "begun" if the subject starts to build layers that the file does not contain."""
    folder.mkdir()
    save_with_huggingface("probe", size, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 1_000_000}), encoding="utf-8")
    try:
        with _ModuleLimit(200 * SIZES[size].layers):
            subject.load_checkpoint(folder)
    except _TooManyModules:
        return "begun"
    except Exception:
        return "refused"
    return "ignored"


class _TooManyModules(BaseException):
    """More modules were built than allowed. A BaseException, so that no loader's `except Exception` catches it."""


class _ModuleLimit:
    """Raise _TooManyModules when more than `modules` modules are built inside the block."""

    def __init__(self, modules: int) -> None:
        self.left = modules
        self.original: Any = torch.nn.Module.__init__

    def __enter__(self) -> None:
        def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise _TooManyModules
            self.original(module, *args, **kwargs)

        setattr(torch.nn.Module, "__init__", counted)  # noqa: B010 - mypy knows the method by its own type

    def __exit__(self, *raised: object) -> None:
        setattr(torch.nn.Module, "__init__", self.original)  # noqa: B010 - as above
