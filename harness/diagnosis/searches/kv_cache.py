"""The search for what goes wrong in decoding with a cache: the formula decodes in the same calls, with a variant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.core.source_lines import location
from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.recorders import ModuleCreationSites, OperationRecorder, Step
from harness.diagnosis.searches.precision import SHORT
from harness.diagnosis.variants.kv_cache import CACHE_VARIANTS, CacheVariant
from harness.oracle.formula import Formula
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import WithoutDropout
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Subject

SIZE = "debug"
SAME = 1e-9  # relative
# New tokens in each call: a prefill and single tokens; then chunks, which distinguish what single tokens cannot.
CHUNKS = ((5, 1, 1, 1, 1, 1, 1, 1), (3, 4, 2, 3))
LENGTH = 12  # the sum of each


def search(subject: Subject) -> list[Finding]:
    """Return why decoding step by step does not give the logits of the full forward pass; [] if it does."""
    if not isinstance(subject, Caches):
        return []
    with ModuleCreationSites() as sites:
        model = _model(subject)
    ids, _ = batch(SIZES[SIZE], "random", rows=2, length=LENGTH)
    weights = {name: tensor.double() for name, tensor in state(SIZE, "probe").items()}
    right = Formula(SIZES[SIZE], weights)(ids)
    with torch.no_grad():
        if not _agree(model.logits(ids), right):
            return []  # the forward pass itself differs, which another search reports
    measured = []
    for chunks in CHUNKS:
        with OperationRecorder(sites) as recorder:
            measured.append(_decoded(subject, model, ids, chunks))
    if (finding := _changing(subject, ids)) is not None:
        return [finding]
    wrong = [not _agree(torch.cat(calls, dim=1), right) for calls in measured]
    if not any(wrong):
        return []
    if (finding := _low_precision(recorder.steps)) is not None:
        return [finding]
    evidence = _evidence(measured[0], right)
    for variant in CACHE_VARIANTS:
        if all(_matches(variant, calls, ids, chunks, weights) for calls, chunks in zip(measured, CHUNKS, strict=True)):
            evidence += "; the formula with this variant gives the same"
            return [Finding(variant.where, variant.fault, variant.says, evidence)]
    if not wrong[0]:
        says = "decoding in chunks differs from the full forward pass, decoding token by token does not"
        return [Finding("cache.append", "", says, evidence)]
    return [Finding("cache", "", NO_VARIANT, evidence)]


def _model(subject: Subject) -> Model:
    return build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"), "float64")


def _decoded(subject: Caches, model: Model, ids: Tensor, chunks: Sequence[int]) -> list[Tensor]:
    """Return the logits (B, T, V) of each call."""
    cache = subject.new_cache(model, 2)
    with torch.no_grad():
        return [subject.step(model, part, cache) for part in ids.split(list(chunks), dim=1)]


def _changing(subject: Caches, ids: Tensor) -> Finding | None:
    """Return the finding for decoding that gives other logits in another model, or the second time."""
    model = _model(subject)
    first = torch.cat(_decoded(subject, model, ids, CHUNKS[0]), dim=1)
    second = torch.cat(_decoded(subject, model, ids, CHUNKS[0]), dim=1)
    in_another = torch.cat(_decoded(subject, _model(subject), ids, CHUNKS[0]), dim=1)
    if not _agree(in_another, first):
        evidence = "two models with the same weights decode differently"
        with WithoutDropout():
            calm = [torch.cat(_decoded(subject, _model(subject), ids, CHUNKS[0]), dim=1) for _ in range(2)]
        if not _agree(*calm):
            return Finding("cache", "", "decoding with a cache gives other logits each time", evidence)
        cause = "decoding with a cache gives other logits each time: dropout is active"
        return Finding("cache", "kv-dropout-in-decoding", cause, f"{evidence}; without PyTorch's dropout they agree")
    if not _agree(second, first):
        cause = "the second prompt sees keys and values of the first one"
        evidence = "with a new cache, on the same model, the same tokens give other logits the second time"
        return Finding("cache.lifetime", "kv-not-reset-between-prompts", cause, evidence)
    return None


def _low_precision(steps: Sequence[Step]) -> Finding | None:
    short = next((step for step in steps if step.dtype in SHORT), None)
    if short is None:
        return None
    cause = f"keys and values are cached in {str(short.dtype).removeprefix('torch.')}"
    evidence = "a float64 model converts to that dtype while decoding"
    return Finding("cache.dtype", "kv-cache-low-precision", cause, evidence, *location(short.line))


def _evidence(calls: list[Tensor], right: Tensor) -> str:
    whole = torch.cat(calls, dim=1)
    differences = [float((whole[:, n] - right[:, n]).abs().max()) for n in range(whole.shape[1])]
    off = [n for n, difference in enumerate(differences) if not difference <= SAME * float(right.abs().max())]
    if not off:
        return "decoded in chunks, the logits differ from the full forward pass"
    return (
        "decoded token by token, the logits differ from the full forward pass from position "
        f"{off[0]} on, by {max(differences[n] for n in off):.1e}"
    )


def _matches(
    variant: CacheVariant, calls: list[Tensor], ids: Tensor, chunks: Sequence[int], weights: dict[str, Tensor]
) -> bool:
    """Return True if the formula with the variant gives the logits of every call."""
    past: dict[Any, Any] = {}
    cached = 0
    for number, (own, part) in enumerate(zip(calls, ids.split(list(chunks), dim=1), strict=True)):
        new = part.shape[1]
        keys = past[0][0].shape[2] if isinstance(past.get(0), tuple) else 0
        start = min(max(variant.start(cached, new, number, keys), 0), SIZES[SIZE].context - new)
        formula = Formula(SIZES[SIZE], weights, variant.changes, start=start, past=past)
        try:
            if not _agree(own, formula(part)):
                return False
        except (RuntimeError, IndexError):
            return False  # the variant is not defined for these chunks
        cached += new
    return True


def _agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= SAME * expected.abs().max())
