"""Measures of 16-bit precision: each component's own error, and that of autocast, against Hugging Face's."""

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
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

PARTS = ("ln_1", "attn", "ln_2", "mlp")
STREAM_MEAN = 0.6  # the embeddings' sum has std 0.3
Outputs = dict[str, Tensor]


@measure
def component_precision(
    subject: Subject, *, size: str, dtype: Literal["bfloat16", "float16"], rows: int = 4, length: int = 24
) -> Reading:
    """Return the error of each component in a 16-bit dtype over that of Hugging Face's.

    Every component gets the input of the float64 oracle's, rounded to the dtype, so that no error is passed on. Both
    errors are root mean squares against the oracle's output for those inputs. 1 is as accurate as Hugging Face.

    The residual stream has a mean other than 0, as in a trained model: a variance that is computed as a difference of
    squares then loses its digits. Raises SubjectError if no component returns one tensor (B, T, C).
    """
    given: State = dict(state(size, "probe"))
    given["transformer.wpe.weight"] = given["transformer.wpe.weight"] + STREAM_MEAN
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    inputs, expected = model_cache.cached_if_small(
        size, ("components", dtype, rows, length), lambda: _inputs_and_expected(size, given, ids, getattr(torch, dtype))
    )
    theirs = model_cache.cached_if_small(
        size,
        ("components of Hugging Face", dtype, rows, length),
        lambda: _outputs_for(oracle(SIZES[size], given, dtype), ids, inputs),
    )
    own = _outputs_for(build_with_weights(subject, SIZES[size], given, dtype), ids, inputs)
    if not own:
        raise SubjectError("no component returns one tensor of (batch, time, width)")
    errors = {place: (_rms(own[place], expected[place]), _rms(theirs[place], expected[place])) for place in own}
    ratios = {place: mine / max(reference, 1e-300) for place, (mine, reference) in errors.items()}
    return Reading(ratios, "of Hugging Face's error", {"errors": {k: list(pair) for k, pair in errors.items()}})


@measure
def autocast_error(subject: Subject, *, size: str, rows: int = 2, length: int = 24) -> Reading:
    """Return the error of the logits under bfloat16 autocast over that of Hugging Face's, both against float64.

    Both run on the subject's device: what autocast casts differs from device to device.
    """
    given = state(size, "probe")
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)

    def logits(model: Model, *, autocast: bool) -> Tensor:
        with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16, enabled=autocast):
            return model.logits(ids)

    def huggingface_on(device: torch.device) -> Model:
        model = oracle(SIZES[size], given, "float32")
        model.module.to(device)
        return model

    model = build_with_weights(subject, SIZES[size], given)
    expected, theirs = model_cache.cached_if_small(
        size,
        ("autocast", rows, length, str(model.device)),
        lambda: (
            logits(oracle(SIZES[size], given, "float64"), autocast=False),
            logits(huggingface_on(model.device), autocast=True),
        ),
    )
    own = logits(model, autocast=True)
    return Reading(_rms(own, expected) / _rms(theirs, expected), "of Hugging Face's error")


def _inputs_and_expected(size: str, given: State, ids: Tensor, dtype: torch.dtype) -> tuple[Outputs, Outputs]:
    """Return the input of each component, rounded to `dtype`, and the float64 oracle's outputs for these inputs."""
    reference = oracle(SIZES[size], given, "float64")
    inputs: Outputs = {}
    with reference.watched(_components(reference), read=inputs):
        _run(reference, ids)
    rounded = {place: tensor.to(dtype) for place, tensor in inputs.items()}
    return rounded, _outputs_for(reference, ids, rounded)


def _outputs_for(model: Model, ids: Tensor, inputs: Outputs) -> Outputs:
    """Return each component's output (B, T, C) for its own input; the head gets the output of ln_f."""
    outputs: Outputs = {}
    with model.watched(_components(model), given=inputs, answered=outputs):
        outputs["head"] = _run(model, ids)
    width = (*ids.shape, model.size.width)
    return {place: tensor for place, tensor in outputs.items() if place == "head" or tuple(tensor.shape) == width}


def _run(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(ids)


def _components(model: Model) -> dict[str, str]:
    """Return the parts of each block in execution order, and ln_f. Embeddings are lookups, which do not round."""
    names = [f"h.{layer}.{part}" for layer in range(model.size.layers) for part in PARTS]
    return {name: f"transformer.{name}" for name in (*names, "ln_f")}


def _rms(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference."""
    return float((found.double() - expected.double()).pow(2).mean().sqrt())
