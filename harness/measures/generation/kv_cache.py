"""Measures of the key-value cache: cached decoding against the full forward pass over the same tokens."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import Tokens, batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates
from harness.suites.measure_registry import Reading, measure


@measure
def cached_logits(
    subject: Caches,
    *,
    size: str,
    chunks: list[int],
    attention: str = "",
    weights: Weights = "probe",
    tokens: Tokens = "random",
    rows: int = 2,
) -> Reading:
    """Return the noise verdict on the cached logits of each position, against one uncached forward pass.

    `chunks`: the number of tokens that each call appends; the first is the prefill. `attention`: one of the subject's
    attentions, or "" for its default.
    """
    options = {"attention": attention} if attention else {}
    length = sum(chunks)
    ids, _ = batch(SIZES[size], tokens, rows=rows, length=length)
    full, stepped = {}, {}
    for dtype in ("float64", "float32"):
        model = build_with_weights(subject, SIZES[size], state(size, weights), dtype, **options)
        with torch.no_grad():
            full[dtype] = model.logits(ids)
            stepped[dtype] = _decode_in_chunks(subject, model, ids, chunks)
    expected = full["float64"]  # (B, T, V)
    # One floor for all positions: the floor of a single position varies too much by chance.
    floor = noise_verdict.distance(full["float32"], expected)
    return noise_verdict.reading(
        [
            noise_verdict.Difference(
                f"position {t}",
                scale=noise_verdict.max_abs(expected[:, t]),
                float32=noise_verdict.distance(stepped["float32"][:, t], expected[:, t]),
                float64=noise_verdict.distance(stepped["float64"][:, t], expected[:, t]),
                floor32=floor,
            )
            for t in range(length)
        ]
    )


@measure
def cached_tokens_differing(
    subject: Generates,
    *,
    size: str,
    prompt_length: int,
    new_tokens: int,
    weights: Weights = "probe",
    rows: int = 2,
) -> Reading:
    """Count the greedy tokens that differ with and without the cache; beyond the context if `new_tokens` reaches it."""
    prompt, _ = batch(SIZES[size], "random", rows=rows, length=prompt_length)
    model = cached_model(subject, size, weights)
    cached, uncached = (
        subject.generate(model, prompt, new_tokens, temperature=0.0, use_cache=use_cache) for use_cache in (True, False)
    )
    differing = (cached != uncached).nonzero()
    first = differing[0].tolist() if len(differing) else None
    hint = f"first at row {first[0]}, position {first[1]}" if first else ""
    return Reading(len(differing), "tokens", {"hint": hint})


@measure
def cache_past_the_context(subject: Caches, *, size: str, weights: Weights = "probe") -> Reading:
    """Return True if tokens beyond the context are refused or answered correctly: one, and a chunk across the edge.

    The correct answer is that of a full forward pass over the last `context` tokens: a window that slides.
    """
    context = SIZES[size].context
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    ids, _ = batch(SIZES[size], "random", rows=2, length=context + 2)
    found, answers = {}, {}
    for place, filled, more in (("one token, the cache full", context, 1), ("three tokens, two fit", context - 2, 3)):
        cache = subject.new_cache(model, 2)
        with torch.no_grad():
            subject.step(model, ids[:, :filled], cache)
            try:
                last = subject.step(model, ids[:, filled : filled + more], cache)[:, -1]
            except Exception as error:
                found[place], answers[place] = True, f"refused: {type(error).__name__}: {error}"
                continue
            expected = model.logits(ids[:, filled + more - context : filled + more])[:, -1]
        found[place] = noise_verdict.distance(last, expected) <= 1e-4 * noise_verdict.max_abs(expected)
        answers[place] = "right" if found[place] else "other logits than those of the full forward pass"
    return Reading(found, details={"answers": answers})


@measure
def cached_half_precision_error(
    subject: Caches,
    *,
    size: str,
    dtype: Literal["bfloat16", "float16"] = "bfloat16",
    weights: Weights = "probe",
    rows: int = 4,
    length: int = 24,
) -> Reading:
    """Return the error of logits decoded token by token in a 16-bit dtype over that of one uncached pass.

    Both errors are root mean squares against the subject in float64. The ratio grows if the cache stores fewer bits
    than the model computes in.
    """
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length)
    with torch.no_grad():
        expected = build_with_weights(subject, SIZES[size], state(size, weights), "float64").logits(ids)
        model = build_with_weights(subject, SIZES[size], state(size, weights), dtype)
        full = model.logits(ids).double() - expected
        stepped = _decode_in_chunks(subject, model, ids, [4] + [1] * (length - 4)).double() - expected
    return Reading(float(stepped.norm() / full.norm()), "of the uncached error")


def _decode_in_chunks(subject: Caches, model: Model, ids: Tensor, chunks: list[int]) -> Tensor:
    """Return the logits (B, T, V) of `ids` (B, T) fed through a cache, `chunks` tokens at a time."""
    # Another sequence first, with a cache of its own: it must leave no trace in what follows.
    subject.step(model, ids.flip(1)[:, :2], subject.new_cache(model, ids.shape[0]))
    cache = subject.new_cache(model, ids.shape[0])
    return torch.cat([subject.step(model, chunk, cache) for chunk in ids.split(chunks, dim=1)], dim=1)
