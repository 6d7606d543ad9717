"""Measures of weight loading: every tensor accounted for, the round trip through Hugging Face, silent failures."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.measures.loading.huggingface_files import (
    WEIGHTS_FILE,
    load_with_huggingface,
    rewrite_weights,
    same_logits,
    save_with_huggingface,
)
from harness.oracle import equivalents, model_cache, noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import State, Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Checkpoints, Subject
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure


@measure
def weight_map_gaps(subject: Subject, *, size: str) -> Reading:
    """Count, by family, the published tensors that are not bitwise equal after a write to the subject and a read.

    Raises SubjectError if the subject has no weight map.
    """
    try:
        model = build_with_weights(subject, SIZES[size], state(size, "probe"))
    except MissingAbility as missing:
        # Without a weight map every comparison with GPT-2 is a skip, and a run of skips looks green: this one is red.
        raise SubjectError(
            f"{missing}. Without it nothing is compared with GPT-2: see 'Add a subject' in CONTRIBUTING.md"
        ) from missing
    back = model.published_state()
    given = state(size, "probe")
    gaps = dict.fromkeys((family(name) for name in given), 0)
    for name, tensor in given.items():
        gaps[family(name)] += name not in back or not torch.equal(back[name], tensor)
    beyond = dict.fromkeys(row.own for row in model.weights.rows if row.is_beyond_gpt2 and row.published not in given)
    gaps |= dict.fromkeys((f"{name}, which GPT-2 does not have" for name in beyond), 1)
    gaps |= dict.fromkeys((f"{name}, which GPT-2 does not have" for name in model.weights.unmapped_parameters), 1)
    rows = {row.published: f"{row.own}{' (transposed)' if row.transposed else ''}" for row in model.weights.rows}
    return Reading(gaps, "tensors", {"map": rows, "hint": model.weights.gaps, "notes": list(model.weights.notes)})


@measure
def untransposed_projection(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """Return True if the noise verdict detects a square projection that was loaded without its transpose.

    Block 0's attn.c_proj is loaded transposed. Every shape still fits, so the failure is silent; the embeddings must
    still agree, and block 0 and the logits must be different.
    """
    right = state(size, "probe")
    name = "transformer.h.0.attn.c_proj.weight"
    wrong: State = {**right, name: right[name].mT.contiguous()}
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    comparison = noise_verdict.compare(
        lambda dtype: build_with_weights(subject, SIZES[size], wrong, dtype),
        _reference_outputs(size, "probe", ids, targets),
        ids,
        targets,
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
    """Count the tensors that change on the path subject -> directory -> Hugging Face -> directory -> subject.

    Counts changed settings, added tensors and parameters that no longer require a gradient as well.
    """
    given = state(size, "probe")
    ids, _ = batch(SIZES[size], "random", rows=2, length=8)
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs = Path(folder, "ours"), Path(folder, "theirs")
        subject.save_checkpoint(build_with_weights(subject, SIZES[size], given), ours)
        huggingface: Any = load_with_huggingface(ours)
        read = huggingface.state_dict()
        lost_there = sum(name not in read or not torch.equal(read[name], tensor) for name, tensor in given.items())
        with torch.no_grad():
            there = huggingface(ids).logits
            expected = model_cache.cached_if_small(
                size, "logits after a round trip", lambda: oracle(SIZES[size], given, "float32").logits(ids)
            )
        huggingface.save_pretrained(theirs)
        model = subject.load_checkpoint(theirs)
    back = model.published_state()
    lost_back = sum(name not in back or not torch.equal(back[name], tensor) for name, tensor in given.items())
    return Reading(
        {
            "tensors changed at Hugging Face": lost_there,
            "settings changed at Hugging Face": int(not same_logits(there, expected)),
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
    """Return the noise verdict on each output of a model that the subject's own loader loaded.

    `layout`: "saved" is the directory that `save_pretrained` writes; "released" has GPT-2's file as the Hugging Face
    hub has it, with names without `transformer.` and a causal mask in every block.
    """
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    with tempfile.TemporaryDirectory() as folder:
        save_with_huggingface(weights, size, Path(folder))
        if layout == "released":
            rewrite_weights(
                Path(folder) / WEIGHTS_FILE, functools.partial(_in_released_layout, context=SIZES[size].context)
            )

        def loaded(dtype: str) -> Model:
            with uninitialised_memory_filled():  # a buffer that no file contains is there by chance
                model = subject.load_checkpoint(Path(folder))
            model.module.to(getattr(torch, dtype))
            return model

        comparison = equivalents.compare_allowing_equivalents(
            loaded,
            _reference_outputs(size, weights, ids, targets),
            ids,
            targets,
            size=SIZES[size],
            state=state(size, weights),
        )
    return noise_verdict.reading(comparison.outputs)


def _reference_outputs(size: str, weights: Weights, ids: Tensor, targets: Tensor) -> noise_verdict.ReferenceRun:
    """Return the outputs of Hugging Face's GPT-2, without gradients."""
    return model_cache.cached_if_small(
        size,
        ("reference outputs without gradients", weights, tuple(ids.shape)),
        lambda: noise_verdict.run_reference(
            lambda dtype: oracle(SIZES[size], state(size, weights), dtype), ids, targets, backward=False
        ),
    )


def _in_released_layout(tensors: dict[str, Tensor], *, context: int) -> dict[str, Tensor]:
    """Return the tensors under bare names, with a causal mask (1, 1, T, T) for every block."""
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    masks = {f"{name.removesuffix('ln_1.weight')}attn.bias" for name in bare if name.endswith("ln_1.weight")}
    return {**bare, **{name: torch.ones(1, 1, context, context).tril() for name in masks}}
