"""Measures of claims about Hugging Face's checkpoint: its orientation, its entries, and the logits that it gives."""

from __future__ import annotations

import functools

import torch
from torch import nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle.hugging_face import huggingface_config, oracle
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import MappedWeight, family, published_shapes
from harness.suites.measure_registry import Reading, measure

BLOCK = "transformer.h.0."
RTOL = 1e-5  # torch.allclose's default


@measure
def checkpoint_orientation(subject: Subject, *, size: str, weight: str) -> Reading:
    """Return the shape of a block's weight at Hugging Face, and in the subject: `768 x 2304 -> 2304 x 768`.

    Raises MissingAbility if the subject has no nn.Linear's weight for it alone.
    """
    published = f"{BLOCK}{weight}"
    theirs = tuple(_huggingface(size).get_parameter(published).shape)
    model = subject.build(SIZES[size], device="meta")
    row = _linear_rows(model, subject)[weight]
    own = tuple(model.module.get_parameter(row.own).shape)
    return Reading(f"{_times(theirs)} -> {_times(own)}", "", {"parameter": row.own})


@measure
def transposed_matrices(subject: Subject, *, size: str) -> Reading:
    """Count the matrices of a block that Hugging Face stores as (in, out) and the subject as (out, in).

    Raises MissingAbility if the subject's layers are not nn.Linear.
    """
    rows = _linear_rows(subject.build(SIZES[size], device="meta"), subject)
    return Reading(len(rows), "matrices", {"weights": sorted(rows)})


@measure
def accepted_untransposed(subject: Subject, *, size: str) -> Reading:
    """Return the matrices of a block that `load_state_dict` accepts as Hugging Face stores them, not transposed.

    The details have how far the logits then are from the right ones, relative to the largest logit. Raises
    MissingAbility if the subject's layers are not nn.Linear.
    """
    weights = state(size, "probe")
    model = build_with_weights(subject, SIZES[size], weights)
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    with torch.no_grad():
        right = model.logits(ids)
    accepted, moved = [], {}
    for weight, row in _linear_rows(model, subject).items():
        own = model.module.state_dict()
        try:
            model.module.load_state_dict({**own, row.own: weights[f"{BLOCK}{weight}"]})
        except RuntimeError:  # size mismatch
            continue
        with torch.no_grad():
            moved[weight] = float((model.logits(ids) - right).abs().max() / right.abs().max())
        accepted.append(weight)
        model.load(weights)
    return Reading(", ".join(accepted) or "none", "", {"logits move by": moved})


@measure
def huggingface_entries(subject: Subject, *, size: str) -> Reading:
    """Return the entries of the state dict of transformers' GPT-2, its distinct parameters, and their difference."""
    import transformers  # takes seconds to import

    module = _huggingface(size)
    entries, parameters = len(module.state_dict()), len(list(module.parameters()))
    found = {"entries": entries, "parameters": parameters, "difference": entries - parameters}
    return Reading(found, "", {"transformers": transformers.__version__})


@measure
def tolerance_needed(subject: Subject, *, size: str, weights: Weights, rows: int = 2, length: int = 32) -> Reading:
    """Return the smallest atol with which torch.allclose accepts the subject's float32 logits as Hugging Face's.

    With its default rtol of 1e-5: the largest |a - b| - rtol·|b|.
    """
    given = state(size, weights)
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    with torch.no_grad():
        theirs = oracle(SIZES[size], given, "float32").logits(ids)
        own = build_with_weights(subject, SIZES[size], given).logits(ids)
    difference = (own - theirs).abs()
    return Reading(
        float((difference - RTOL * theirs.abs()).max().clamp(min=0.0)),
        "",
        {"largest difference": float(difference.max()), "std of the logits": float(theirs.std())},
    )


@functools.lru_cache(maxsize=1)
def _huggingface(size: str) -> nn.Module:
    """Return transformers' GPT-2 on the meta device. Do not write into it: it is shared."""
    from transformers import GPT2LMHeadModel  # takes seconds to import

    with torch.device("meta"):
        return GPT2LMHeadModel(huggingface_config(SIZES[size]))


def _linear_rows(model: Model, subject: Subject) -> dict[str, MappedWeight]:
    """Return the rows of the first block's matrices, by name within the block. Raises MissingAbility; see above."""
    matrices = {name for name, shape in published_shapes(model.size).items() if BLOCK in name and len(shape) == 2}
    rows = [row for row in model.weights.rows if row.published in matrices]
    found = {family(row.published): row for row in rows if row.transposed and not row.part and not row.layout}
    if len(found) != len(matrices) or len(rows) != len(matrices):
        raise MissingAbility(f"{subject.name} has other layers than one nn.Linear for each matrix of a block")
    return found


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
