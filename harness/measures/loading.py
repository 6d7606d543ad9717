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

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.oracle import equivalents, model_cache, noise_verdict
from harness.oracle.hugging_face import huggingface_config, oracle
from harness.oracle.probe_weights import State, Weights, state
from harness.oracle.tokens import batch
from harness.subjects.model import Checkpoints, Model, Subject, build_with_weights
from harness.subjects.weight_map import family, published_shapes
from harness.suites.measure_registry import Reading, measure

# Settings of config.json that change what the same tensors compute.
CONFIGS: dict[str, dict[str, Any]] = {
    "another n_head": {"n_head": 6},
    "another layer_norm_epsilon": {"layer_norm_epsilon": 1e-2},
    "another activation_function": {"activation_function": "relu"},
    "scale_attn_weights false": {"scale_attn_weights": False},
    "scale_attn_by_inverse_layer_idx true": {"scale_attn_by_inverse_layer_idx": True},
    "tie_word_embeddings false": {"tie_word_embeddings": False},
}


@measure
def weight_map_gaps(subject: Subject, *, size: str) -> Reading:
    """Published tensors that do not survive being written into the subject and read back, bitwise, by family."""
    try:
        model = build_with_weights(subject, SIZES[size], state(size, "probe"))
    except MissingAbility as missing:
        # Every comparison with GPT-2 is skipped then, and a run of skips looks green: this one check says it in red.
        raise SubjectError(
            f"{missing}. Without it nothing is compared with GPT-2: see 'Add a subject' in CONTRIBUTING.md"
        ) from missing
    back = model.weights.read(dict(model.module.named_parameters()))
    gaps = dict.fromkeys((family(name) for name in published_shapes(SIZES[size])), 0)
    for name, tensor in state(size, "probe").items():
        gaps[family(name)] += name not in back or not torch.equal(back[name], tensor)
    gaps |= dict.fromkeys((f"{name}, which GPT-2 does not have" for name in model.weights.unmapped_parameters), 1)
    rows = {row.published: f"{row.own}{' (transposed)' if row.transposed else ''}" for row in model.weights.rows}
    return Reading(gaps, "tensors", {"map": rows, "hint": model.weights.gaps, "notes": list(model.weights.notes)})


@measure
def untransposed_projection(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """The silent failure, shown: block 0's attn.c_proj, square, is loaded the wrong way round.

    Whether every shape still fits, and whether the noise verdict on the logits sees it all the same.
    """
    right = state(size, "probe")
    name = "transformer.h.0.attn.c_proj.weight"
    wrong: State = {**right, name: right[name].mT.contiguous()}
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    truth = _truth(size, "probe", ids, targets)
    comparison = noise_verdict.compare(
        lambda dtype: build_with_weights(subject, SIZES[size], wrong, dtype), truth, ids, targets
    )
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
    ids, _ = batch(SIZES[size], "random", rows=2, length=8)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        subject.save_checkpoint(build_with_weights(subject, SIZES[size], given), ours)
        huggingface: Any = _from_huggingface(ours)
        read = huggingface.state_dict()
        lost_there = sum(name not in read or not torch.equal(read[name], tensor) for name, tensor in given.items())
        with torch.no_grad():
            there = huggingface(ids).logits
            expected = model_cache.cached_if_small(
                size, "logits after a round trip", lambda: oracle(SIZES[size], given, "float32").logits(ids)
            )
        huggingface.save_pretrained(theirs)
        model = subject.load_checkpoint(theirs)
    back = model.weights.read(dict(model.module.named_parameters()))
    lost_back = sum(name not in back or not torch.equal(back[name], tensor) for name, tensor in given.items())
    return Reading(
        {
            "tensors changed at Hugging Face": lost_there,
            "settings changed at Hugging Face": int(not _near(there, expected)),
            "tensors changed on the way back": lost_back,
            "tensors beyond the published ones": len(set(back) - set(given)),
            "parameters that no longer train": sum(not p.requires_grad for p in model.module.parameters()),
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
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    with tempfile.TemporaryDirectory() as folder:
        _save_with_huggingface(weights, size, Path(folder))
        if layout == "released":
            _rewrite(Path(folder) / "model.safetensors", functools.partial(_as_released, context=SIZES[size].context))

        def loaded(dtype: str) -> Model:
            model = subject.load_checkpoint(Path(folder))
            model.module.to(getattr(torch, dtype))
            return model

        truth = _truth(size, weights, ids, targets)
        comparison = equivalents.compare_allowing_equivalents(
            loaded, truth, ids, targets, size=SIZES[size], state=state(size, weights)
        )
    return noise_verdict.reading(comparison.outputs)


@measure
def config_honoured(subject: Checkpoints, *, size: str) -> Reading:
    """Whether what config.json says is done or refused, setting by setting; `answers` says which of the two.

    Done is Hugging Face's answer to the same directory, within rounding. A million layers must be refused at once:
    who begins to build them believes a number and not the file.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    found: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        usual, published = _answers(subject, size, {}, ids, Path(name, "as-published"))
        right = usual is not None and _near(usual, published)
        for place, setting in CONFIGS.items():
            answer, wanted = _answers(subject, size, setting, ids, Path(name, place.replace(" ", "-")))
            if answer is None:
                found[place] = "refused"
            elif usual is not None and torch.equal(answer, usual):
                found[place] = "ignored"
            else:  # a model that is not GPT-2 as it is published cannot be told by this
                found[place] = "honoured" if _near(answer, wanted) or not right else "done otherwise"
        found["a million layers"] = _answer_to_a_million_layers(subject, size, Path(name, "a-million-layers"))
    wrong = [f"{place}: {answer}" for place, answer in found.items() if answer not in ("honoured", "refused")]
    return Reading(
        {place: answer in ("honoured", "refused") for place, answer in found.items()},
        details={"answers": found, "hint": ", ".join(wrong)},
    )


def _answers(
    subject: Checkpoints, size: str, setting: dict[str, Any], ids: Tensor, folder: Path
) -> tuple[Tensor | None, Tensor]:
    """The logits of what the subject loads from a directory with that setting (None: refused), and the right ones."""
    folder.mkdir()
    files, wanted = model_cache.cached_if_small(
        size, ("config", *sorted(setting.items())), lambda: _other_huggingface(size, setting, ids)
    )
    for file, content in files.items():
        (folder / file).write_bytes(content)
    try:
        with torch.no_grad():
            return subject.load_checkpoint(folder).logits(ids), wanted
    except Exception:
        return None, wanted


def _near(found: Tensor, expected: Tensor) -> bool:
    return noise_verdict.distance(found, expected) <= 1e-4 * noise_verdict.largest(expected)


Damage = Literal["truncated", "tensor missing", "tensor unknown", "shape wrong", "pickle only"]


@measure
def damaged_checkpoint(subject: Checkpoints, *, size: str, damage: Damage) -> Reading:
    """What the subject's own loader does with a damaged directory: 'rejected' or 'loaded', by what is damaged."""
    families = [family(name) for name in published_shapes(SIZES[size])] if damage == "tensor missing" else [damage]
    answers: dict[str, str] = {}
    told: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _save_with_huggingface("probe", size, folder)
        whole = (folder / "model.safetensors").read_bytes()
        for kind in dict.fromkeys(families):
            (folder / "model.safetensors").write_bytes(whole)
            _damage(folder, damage, kind)
            try:
                subject.load_checkpoint(folder)
                answers[kind] = "loaded"
            except Exception as error:
                answers[kind], told[kind] = "rejected", f"{type(error).__name__}: {error}"
    return Reading(answers, details={"errors": told})


def _truth(size: str, weights: Weights, ids: Tensor, targets: Tensor) -> noise_verdict.Truth:
    return model_cache.cached_if_small(
        size,
        ("truth without gradients", weights, tuple(ids.shape)),
        lambda: noise_verdict.truth(
            lambda dtype: oracle(SIZES[size], state(size, weights), dtype), ids, targets, backward=False
        ),
    )


def _save_with_huggingface(weights: Weights, size: str, folder: Path) -> None:
    """The directory that Hugging Face's GPT-2 writes of those weights."""

    def files() -> dict[str, bytes]:
        model: Any = oracle(SIZES[size], state(size, weights), "float32").module
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    for name, content in model_cache.cached_if_small(size, ("saved", weights), files).items():
        (folder / name).write_bytes(content)


def _other_huggingface(size: str, setting: dict[str, Any], ids: Tensor) -> tuple[dict[str, bytes], Tensor]:
    """The files of a Hugging Face GPT-2 with that setting and the probe weights, and its logits for `ids`."""
    from transformers import GPT2LMHeadModel

    config, given = huggingface_config(SIZES[size]), state(size, "probe")
    config.update(setting)
    config._attn_implementation = "eager"
    model: Any = GPT2LMHeadModel(config).eval()
    head = torch.flip(given["transformer.wte.weight"], [0])  # of its own, where it is not tied
    untied = setting.get("tie_word_embeddings", True) is False
    model.load_state_dict({**given, **({"lm_head.weight": head} if untied else {})}, strict=False)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        model.save_pretrained(folder)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}, model(ids).logits


def _answer_to_a_million_layers(subject: Checkpoints, size: str, folder: Path) -> str:
    """'refused', or 'begun' if the subject sets about building what config.json claims and the file does not hold."""
    folder.mkdir()
    _save_with_huggingface("probe", size, folder)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "n_layer": 1_000_000}), encoding="utf-8")
    try:
        with _AtMost(200 * SIZES[size].layers):
            subject.load_checkpoint(folder)
    except _TooMany:
        return "begun"
    except Exception:
        return "refused"
    return "ignored"


class _TooMany(BaseException):
    """More modules were built than there can be; no error that a loader would catch."""


class _AtMost:
    """While open, building more than so many modules raises _TooMany."""

    def __init__(self, modules: int) -> None:
        self.left = modules
        self.original: Any = torch.nn.Module.__init__

    def __enter__(self) -> None:
        def counted(module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
            self.left -= 1
            if self.left < 0:
                raise _TooMany
            self.original(module, *args, **kwargs)

        setattr(torch.nn.Module, "__init__", counted)  # noqa: B010 - mypy knows the method by its own type

    def __exit__(self, *raised: object) -> None:
        setattr(torch.nn.Module, "__init__", self.original)  # noqa: B010 - as above


def _from_huggingface(folder: Path) -> torch.nn.Module:
    from transformers import GPT2LMHeadModel

    huggingface_config(SIZES["debug"])  # quiets the library's log
    model: torch.nn.Module = GPT2LMHeadModel.from_pretrained(folder, dtype=torch.float32)
    return model


def _damage(folder: Path, damage: Damage, kind: str) -> None:
    file = folder / "model.safetensors"
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
            "tensor unknown": _with_stranger,
            "shape wrong": _with_wrong_shape,
        }
        _rewrite(file, change[damage])


def _rewrite(file: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    from safetensors.torch import load, save_file

    save_file(change(load(file.read_bytes())), file, metadata={"format": "pt"})


def _named(tensors: dict[str, Any], ending: str) -> str:
    return next(name for name in tensors if name.endswith(ending))


def _without(tensors: dict[str, Tensor], *, kind: str) -> dict[str, Tensor]:
    """Without the last tensor of that family: a loader that is one layer short misses just this one."""
    last = [name for name in tensors if family(name) == kind][-1]
    return {name: tensor for name, tensor in tensors.items() if name != last}


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
