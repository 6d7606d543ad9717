"""Measures of loading: every tensor accounted for, the round trip through Hugging Face, silent failures."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness import noise
from harness.errors import MissingAbility, SubjectError
from harness.measure import Reading, measure
from harness.oracle import huggingface_config, oracle
from harness.size import SIZES
from harness.states import State, Weights, state
from harness.subject import Checkpoints, Model, Subject, holding
from harness.tokens import batch
from harness.weights import family, published_shapes


@measure
def weight_map_gaps(subject: Subject, *, size: str) -> Reading:
    """Published tensors that do not survive being written into the subject and read back, bitwise, by family."""
    try:
        model = holding(subject, SIZES[size], state(size, "probe"))
    except MissingAbility as missing:
        # Every comparison with GPT-2 is skipped then, and a run of skips looks green: this one check says it in red.
        raise SubjectError(
            f"{missing}. Without it nothing is compared with GPT-2: see 'Add a subject' in CONTRIBUTING.md"
        ) from missing
    back = model.weights.read(dict(model.module.named_parameters()))
    gaps = dict.fromkeys((family(name) for name in published_shapes(SIZES[size])), 0)
    for name, tensor in state(size, "probe").items():
        gaps[family(name)] += name not in back or not torch.equal(back[name], tensor)
    rows = {row.published: f"{row.own}{' (transposed)' if row.transposed else ''}" for row in model.weights.rows}
    return Reading(gaps, "tensors", {"map": rows})


@measure
def untransposed_projection(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """The silent failure, shown: block 0's attn.c_proj, square, is loaded the wrong way round.

    Whether every shape still fits, and whether the noise verdict on the logits sees it all the same.
    """
    right = state(size, "probe")
    name = "transformer.h.0.attn.c_proj.weight"
    wrong: State = {**right, name: right[name].mT.contiguous()}
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    truth = noise.truth(lambda dtype: oracle(SIZES[size], right, dtype), ids, targets, backward=False)
    comparison = noise.hold(lambda dtype: holding(subject, SIZES[size], wrong, dtype), truth, ids, targets)
    verdicts = {difference.where: difference.verdict for difference in comparison.outputs}
    return Reading(
        {
            "every shape still fits": all(wrong[key].shape == tensor.shape for key, tensor in right.items()),
            "the embeddings agree": verdicts["embedding"] != "different",
            "block 0 is found different": verdicts["block 0"] == "different",
            "the logits are found different": verdicts["logits"] == "different",
        },
        details={"comparisons": [d.as_row() for d in comparison.outputs]},
    )


@measure
def checkpoint_round_trip(subject: Checkpoints, *, size: str) -> Reading:
    """Tensors that change on the way subject -> directory -> Hugging Face -> directory -> subject, and ties lost."""
    given = state(size, "probe")
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        subject.save_checkpoint(holding(subject, SIZES[size], given), ours)
        huggingface: Any = _from_huggingface(ours)
        read = huggingface.state_dict()
        lost_there = sum(not torch.equal(read[name], tensor) for name, tensor in given.items())
        huggingface.save_pretrained(theirs)
        model = subject.load_checkpoint(theirs)
    back = model.weights.read(dict(model.module.named_parameters()))
    lost_back = sum(name not in back or not torch.equal(back[name], tensor) for name, tensor in given.items())
    return Reading(
        {
            "tensors changed at Hugging Face": lost_there,
            "tensors changed on the way back": lost_back,
            "tensors beyond the published ones": len(set(back) - set(given)),
        },
        "tensors",
    )


@measure
def loaded_parity(
    subject: Checkpoints,
    *,
    size: str,
    layout: Literal["saved", "released"] = "saved",
    weights: Weights = "probe",
    length: int = 24,
) -> Reading:
    """The noise verdict on the logits of a model that the subject itself loaded from a Hugging Face directory.

    'saved' as `save_pretrained` writes it; 'released' as the hub has GPT-2: names without `transformer.`, and a causal
    mask in every block.
    """
    given = state(size, weights)
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    with tempfile.TemporaryDirectory() as folder:
        _save_with_huggingface(given, size, Path(folder))
        if layout == "released":
            _rewrite(Path(folder) / "model.safetensors", functools.partial(_as_released, context=SIZES[size].context))

        def loaded(dtype: str) -> Model:
            model = subject.load_checkpoint(Path(folder))
            model.module.to(getattr(torch, dtype))
            return model

        truth = noise.truth(lambda dtype: oracle(SIZES[size], given, dtype), ids, targets, backward=False)
        comparison = noise.hold(loaded, truth, ids, targets)
    return noise.reading(comparison.outputs)


Damage = Literal["truncated", "tensor missing", "tensor unknown", "shape wrong", "pickle only", "other activation"]


@measure
def damaged_checkpoint(subject: Checkpoints, *, size: str, damage: Damage) -> Reading:
    """What the subject's own loader does with a damaged directory: 'rejected' or 'loaded'."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save_with_huggingface(state(size, "probe"), size, folder)
        _damage(folder, damage)
        try:
            subject.load_checkpoint(folder)
        except Exception as error:
            return Reading("rejected", details={"error": f"{type(error).__name__}: {error}"})
    return Reading("loaded")


def _save_with_huggingface(given: State, size: str, folder: Path) -> None:
    model: Any = oracle(SIZES[size], given, "float32").module
    model.save_pretrained(folder)


def _from_huggingface(folder: Path) -> torch.nn.Module:
    from transformers import GPT2LMHeadModel

    huggingface_config(SIZES["debug"])  # quiets the library's log
    model: torch.nn.Module = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return model


def _damage(folder: Path, damage: Damage) -> None:
    file = folder / "model.safetensors"
    if damage == "truncated":
        content = file.read_bytes()
        file.write_bytes(content[: len(content) * 2 // 3])
    elif damage == "pickle only":
        from safetensors.torch import load_file

        torch.save(load_file(file), folder / "pytorch_model.bin")
        file.unlink()
    elif damage == "other activation":
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        (folder / "config.json").write_text(json.dumps({**config, "activation_function": "relu"}), encoding="utf-8")
    else:
        _rewrite(
            file,
            {
                "tensor missing": _without_ln_f,
                "tensor unknown": _with_stranger,
                "shape wrong": _with_wrong_shape,
            }[damage],
        )


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    from safetensors.torch import load, save_file

    save_file(change(load(file.read_bytes())), file, metadata={"format": "pt"})


def _named(tensors: dict[str, Any], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


def _without_ln_f(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    del tensors[_named(tensors, "ln_f.weight")]
    return tensors


def _as_released(tensors: dict[str, Tensor], *, context: int) -> dict[str, Tensor]:
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"{name.removesuffix('ln_1.weight')}attn.bias" for name in bare if name.endswith("ln_1.weight")}
    return {**bare, **{name: torch.ones(1, 1, context, context).tril() for name in masks}}


def _with_stranger(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = _named(tensors, "ln_f.weight")
    return {**tensors, name.replace("ln_f.weight", "ln_g.weight"): tensors[name].clone()}


def _with_wrong_shape(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    name = _named(tensors, "mlp.c_fc.weight")
    return {**tensors, name: tensors[name].mT.contiguous()}
