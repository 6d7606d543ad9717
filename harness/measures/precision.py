"""Measures of 16-bit precision: each component's own error against Hugging Face's, and whether it runs at all."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import SubjectError
from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import State, state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights
from harness.suites.measure_registry import Reading, measure

PARTS = ("ln_1", "attn", "ln_2", "mlp")
STREAM_MEAN = 0.6  # the embeddings' sum has std 0.3
Outputs = dict[str, Tensor]


@measure
def component_precision(
    subject: Subject, *, size: str, dtype: Literal["bfloat16", "float16"], rows: int = 4, length: int = 24
) -> Reading:
    """Error of each component in a 16-bit dtype over Hugging Face's own, all given the same inputs.

    Every component reads what the float64 oracle's reads, rounded to the dtype, so that no error is passed on; both
    are held against the oracle's answer to those inputs, root mean square. 1 is as accurate as Hugging Face. The stream
    has a mean that is not 0, as a trained one has: a variance that is a difference of squares then loses its digits.
    """
    given: State = dict(state(size, "probe"))
    given["transformer.wpe.weight"] = given["transformer.wpe.weight"] + STREAM_MEAN
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    inputs, truth = model_cache.cached_if_small(
        size, ("components", dtype, rows, length), lambda: _truth(size, given, ids, getattr(torch, dtype))
    )
    theirs = model_cache.cached_if_small(
        size,
        ("components of Hugging Face", dtype, rows, length),
        lambda: _alone(oracle(SIZES[size], given, dtype), ids, inputs),
    )
    own = _alone(build_with_weights(subject, SIZES[size], given, dtype), ids, inputs)
    if not own:
        raise SubjectError("no component answers with one tensor of (batch, time, width)")
    errors = {place: (_rms(own[place], truth[place]), _rms(theirs[place], truth[place])) for place in own}
    ratios = {place: mine / max(reference, 1e-300) for place, (mine, reference) in errors.items()}
    return Reading(ratios, "of Hugging Face's error", {"errors": {k: list(pair) for k, pair in errors.items()}})


@measure
def autocast_error(subject: Subject, *, size: str, rows: int = 2, length: int = 24) -> Reading:
    """Error of the logits under `torch.autocast` to bfloat16 over Hugging Face's own, both against float64."""
    given = state(size, "probe")
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)

    def answered(model: Model, *, autocast: bool) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            return model.logits(ids)

    truth, theirs = model_cache.cached_if_small(
        size,
        ("autocast", rows, length),
        lambda: (
            answered(oracle(SIZES[size], given, "float64"), autocast=False),
            answered(oracle(SIZES[size], given, "float32"), autocast=True),
        ),
    )
    own = answered(build_with_weights(subject, SIZES[size], given), autocast=True)
    return Reading(_rms(own, truth) / _rms(theirs, truth), "of Hugging Face's error")


def _truth(size: str, given: State, ids: Tensor, dtype: torch.dtype) -> tuple[Outputs, Outputs]:
    """What each component reads, rounded to `dtype`, and the float64 oracle's answer to that."""
    reference = oracle(SIZES[size], given, "float64")
    inputs: Outputs = {}
    with reference.watched(_components(reference), read=inputs):
        _run(reference, ids)
    rounded = {place: tensor.to(dtype) for place, tensor in inputs.items()}
    return rounded, _alone(reference, ids, rounded)


def _alone(model: Model, ids: Tensor, inputs: Outputs) -> Outputs:
    """Each component's answer to its own input, whatever the others answered; the head reads ln_f's answer."""
    outputs: Outputs = {}
    with model.watched(_components(model), given=inputs, answered=outputs):
        outputs["head"] = _run(model, ids)
    width = (*ids.shape, model.size.width)
    return {place: tensor for place, tensor in outputs.items() if place == "head" or tuple(tensor.shape) == width}


def _run(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(ids)


def _components(model: Model) -> dict[str, str]:
    """The embeddings' tables have nothing to round; the parts of each block in execution order, and ln_f."""
    names = [f"h.{layer}.{part}" for layer in range(model.size.layers) for part in PARTS]
    return {name: f"transformer.{name}" for name in (*names, "ln_f")}


def _rms(found: Tensor, truth: Tensor) -> float:
    return float((found.double() - truth.double()).pow(2).mean().sqrt())
