"""The measure of damaged checkpoints: a loader must reject them."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.loading.huggingface_files import WEIGHTS_FILE, rewrite_weights, save_with_huggingface
from harness.subjects.protocols import Checkpoints
from harness.subjects.weight_map import family, published_shapes
from harness.suites.measure_registry import Reading, measure

Damage = Literal["truncated", "tensor missing", "tensor unknown", "shape wrong", "pickle only"]


@measure
def damaged_checkpoint(subject: Checkpoints, *, size: str, damage: Damage) -> Reading:
    """Return "rejected" or "loaded": the answer of the subject's own loader to a damaged directory.

    "tensor missing" is tried for each family of weights; the details contain the loader's errors.
    """
    kinds = [family(name) for name in published_shapes(SIZES[size])] if damage == "tensor missing" else [damage]
    answers: dict[str, str] = {}
    errors: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_with_huggingface("probe", size, folder)
        whole = (folder / WEIGHTS_FILE).read_bytes()
        for kind in dict.fromkeys(kinds):
            (folder / WEIGHTS_FILE).write_bytes(whole)
            _damage(folder, damage, kind)
            try:
                subject.load_checkpoint(folder)
                answers[kind] = "loaded"
            except Exception as error:
                answers[kind], errors[kind] = "rejected", f"{type(error).__name__}: {error}"
    return Reading(answers, details={"errors": errors})


def _damage(folder: Path, damage: Damage, kind: str) -> None:
    """Damage the weights in `folder`; `kind` is the family whose tensor is removed."""
    file = folder / WEIGHTS_FILE
    if damage == "truncated":
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "pickle only":
        from safetensors.torch import load_file

        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
    else:
        change: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {
            "tensor missing": functools.partial(_without, kind=kind),
            "tensor unknown": _with_unknown_tensor,
            "shape wrong": _with_wrong_shape,
        }
        rewrite_weights(file, change[damage])


def _without(tensors: dict[str, Tensor], *, kind: str) -> dict[str, Tensor]:
    """Remove the last tensor of a family: a loader that is one layer short misses exactly this one."""
    last = [name for name in tensors if family(name) == kind][-1]
    return {name: tensor for name, tensor in tensors.items() if name != last}


def _with_unknown_tensor(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = _first_ending(tensors, "ln_f.weight")
    return {**tensors, name.replace("ln_f.weight", "ln_g.weight"): tensors[name].clone()}


def _with_wrong_shape(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = _first_ending(tensors, "mlp.c_fc.weight")
    return {**tensors, name: tensors[name].mT.contiguous()}


def _first_ending(tensors: dict[str, Any], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))
