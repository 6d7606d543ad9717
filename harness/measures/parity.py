"""Measures of parity with Hugging Face's GPT-2: same weights and tokens, every output and every gradient."""

from __future__ import annotations

import functools
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import equivalents, model_cache, noise_verdict
from harness.oracle.gpt2_with_deviations import own_size
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import Tokens, batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Generates, Subject
from harness.suites.measure_registry import Reading, measure


@measure
def parity(
    subject: Subject,
    *,
    size: str,
    compare: Literal["blocks", "logits", "loss", "gradients"],
    weights: Weights = "probe",
    tokens: Tokens = "random",
    rows: int = 2,
    length: int = 24,
    backward: bool = True,
) -> Reading:
    """Return the noise verdict on the subject against Hugging Face's eager GPT-2, both with the same weights.

    A subject that cannot be built at the size 124M-shallow is compared at 124M.
    """
    size = _size_of(subject, size)
    comparison = _comparison(subject, size, weights, tokens, rows, length, backward)
    if compare == "gradients":
        return noise_verdict.reading(comparison.gradients)
    wanted = {"logits": ["logits"], "loss": ["loss"]}.get(compare)
    return noise_verdict.reading(
        [d for d in comparison.outputs if (d.where in wanted if wanted else d.where not in ("logits", "loss"))]
    )


@measure
def half_precision_error(
    subject: Subject,
    *,
    size: str,
    dtype: Literal["bfloat16", "float16"],
    weights: Weights = "probe",
    tokens: Tokens = "random",
    rows: int = 2,
    length: int = 24,
) -> Reading:
    """Return the error of the subject's logits in a 16-bit dtype over that of Hugging Face's.

    Both errors are root mean squares against the float64 oracle. 1 is as accurate as Hugging Face; a component that
    loses more bits than the dtype requires makes it larger.
    """
    ids, _ = batch(SIZES[size], tokens, rows=rows, length=length)
    given = state(size, weights)
    expected = model_cache.cached_if_small(
        size, ("logits", weights, tokens, rows, length), lambda: _logits(oracle(SIZES[size], given, "float64"), ids)
    )
    theirs = model_cache.cached_if_small(
        size,
        ("error", weights, tokens, rows, length, dtype),
        lambda: _error(_logits(oracle(SIZES[size], given, dtype), ids), expected),
    )
    own = _error(_logits(build_with_weights(subject, SIZES[size], given, dtype), ids), expected)
    return Reading(
        own / theirs,
        "of Hugging Face's error",
        {"error": own, "Hugging Face's error": theirs, "rms of the logits": _rms(expected)},
    )


@measure
def greedy_tokens_differing(
    subject: Generates,
    *,
    size: str,
    weights: Weights = "probe",
    tokens: Tokens = "random",
    prompt_length: int = 8,
    new_tokens: int = 16,
) -> Reading:
    """Count the tokens in which the greedy continuations of the subject and Hugging Face's `generate` differ."""
    prompt, _ = batch(SIZES[size], tokens, rows=2, length=prompt_length)
    given = state(size, weights)
    theirs = model_cache.cached_if_small(
        size,
        ("greedy", weights, tokens, prompt_length, new_tokens),
        lambda: _huggingface_greedy(oracle(SIZES[size], given, "float32"), prompt, new_tokens),
    )
    model = build_with_weights(subject, SIZES[size], given)
    own = subject.generate(model, prompt, new_tokens, temperature=0.0)
    differing = (own != theirs).nonzero()
    details: dict[str, Any] = {"subject": own.tolist(), "Hugging Face": theirs.tolist()}
    if len(differing):
        row, position = differing[0].tolist()
        details["hint"] = f"first at row {row}, position {position}"
    return Reading(int((own != theirs).sum()), "tokens", details)


def _size_of(subject: Subject, size: str) -> str:
    """Return the size; 124M for a subject that is built at a fixed size, instead of a part of it."""
    if size == "124M-shallow":
        try:
            own_size(subject, SIZES[size])
        except MissingAbility:
            return "124M"
    return size


@functools.lru_cache(maxsize=8)
def _comparison(
    subject: Subject, size: str, weights: Weights, tokens: Tokens, rows: int, length: int, backward: bool
) -> noise_verdict.NoiseComparison:
    """Return the comparison that the checks on blocks, logits, loss and gradients share."""
    ids, targets = batch(SIZES[size], tokens, rows=rows, length=length)
    reference = model_cache.cached_if_small(
        size,
        ("reference outputs", weights, tokens, rows, length, backward),
        lambda: noise_verdict.run_reference(
            lambda dtype: oracle(SIZES[size], state(size, weights), dtype), ids, targets, backward=backward
        ),
    )
    given = state(size, weights)
    return equivalents.compare_allowing_equivalents(
        lambda dtype: build_with_weights(subject, SIZES[size], given, dtype),
        reference,
        ids,
        targets,
        size=SIZES[size],
        state=given,
    )


def _logits(model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return model.logits(ids)


def _rms(tensor: Tensor) -> float:
    return float(tensor.double().pow(2).mean().sqrt())


def _error(found: Tensor, expected: Tensor) -> float:
    return _rms(found.double() - expected)


def _huggingface_greedy(model: Model, prompt: Tensor, new_tokens: int) -> Tensor:
    answer: Tensor = model.module.generate(  # type: ignore[operator]
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return answer
