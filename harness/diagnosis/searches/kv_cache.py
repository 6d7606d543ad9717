"""Decoding with a cache explained: the formula decodes as the subject does, with one thing changed at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import ModuleCreationSites, OperationRecorder
from harness.diagnosis.searches.precision import SHORT
from harness.oracle.formula import At, Formula, Replacement
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.model import Caches, Model, Subject, build_with_weights

SIZE = "debug"
SAME = 1e-9
# Prefill and single tokens; then chunks, which tell apart what single tokens cannot.
CHUNKS = ((5, 1, 1, 1, 1), (3, 4, 2, 3))
Start = Callable[[int, int, int, int], int]  # (positions so far, new, calls so far, keys held) -> first new position


@dataclass(frozen=True)
class CacheVariant:
    """One way to get decoding wrong: where, its id, what it says, and what the formula does instead."""

    where: str
    fault: str
    says: str
    start: Start = lambda held, new, calls, kept: held
    changes: tuple[Replacement, ...] = ()


def explain(subject: Subject) -> list[Finding]:
    """Why decoding step by step does not give the logits of the full forward pass; none where it does."""
    if not isinstance(subject, Caches):
        return []
    weights = {name: tensor.double() for name, tensor in state(SIZE, "probe").items()}
    with ModuleCreationSites() as births:
        model = build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"), "float64")
    ids, _ = batch(SIZES[SIZE], "random", rows=2, length=12)
    right = Formula(SIZES[SIZE], weights)(ids)
    with torch.no_grad():
        if not _agree(model.logits(ids), right):
            return []  # the forward pass itself differs, and that is told elsewhere
    measured = []
    for chunks in CHUNKS:
        with torch.no_grad(), OperationRecorder(births) as recorder:
            measured.append(_decoded(subject, model, ids, chunks))
    another = build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"), "float64")
    first = torch.cat(_decoded(subject, another, ids, CHUNKS[0]), dim=1)
    again = torch.cat(_decoded(subject, another, ids, CHUNKS[0]), dim=1)
    third = build_with_weights(subject, SIZES[SIZE], state(SIZE, "probe"), "float64")
    if not _agree(torch.cat(_decoded(subject, third, ids, CHUNKS[0]), dim=1), first):
        says = "decoding with a cache gives another answer each time: dropout is active"
        return [Finding("cache", "kv-dropout-in-decoding", says, "two models with the same weights decode differently")]
    if not _agree(again, first):
        says = "a second prompt sees what the first one left in the cache"
        told = "with a new cache, on the same model, the same tokens give other logits the second time"
        return [Finding("cache.lifetime", "kv-not-reset-between-prompts", says, told)]
    wrong = [not _agree(torch.cat(parts, dim=1), right) for parts in measured]
    if not any(wrong):
        return []
    low = [step for step in recorder.steps if step.dtype in SHORT]
    if low:
        line = low[0].line
        at = ("", "") if line is None else (str(line), line.text)
        cause = f"keys and values are kept in {str(low[0].dtype).removeprefix('torch.')}"
        return [
            Finding("cache.dtype", "kv-cache-low-precision", cause, "a float64 run asks for it while decoding", *at)
        ]
    evidence = _evidence(measured, right)
    for slip in slips():
        if all(
            _fits(parts, ids, _filling(chunks), weights, slip) for parts, chunks in zip(measured, CHUNKS, strict=True)
        ):
            return [
                Finding(slip.where, slip.fault, slip.says, f"{evidence}; the formula with this slip gives the same")
            ]
    where = "cache.append" if not wrong[0] else "cache"
    says = "decoding in chunks differs from the full pass, token by token does not" if not wrong[0] else ""
    return [Finding(where, "", says or "no explanation of the catalogue fits", evidence)]


def _decoded(subject: Caches, model: Model, ids: Tensor, chunks: tuple[int, ...]) -> list[Tensor]:
    """The logits of each call."""
    cache = subject.new_cache(model, 2)
    with torch.no_grad():
        return [subject.step(model, part, cache) for part in ids.split(_filling(chunks), dim=1)]


def _filling(chunks: tuple[int, ...]) -> list[int]:
    return (
        [*chunks[:-1], 12 - sum(chunks[:-1])]
        if sum(chunks) != 12 and len(chunks) == 4
        else [*chunks, *[1] * (12 - sum(chunks))]
    )


def _evidence(measured: list[list[Tensor]], right: Tensor) -> str:
    gaps = [(part_gap, position) for parts in measured[:1] for position, part_gap in _gaps(parts, right)]
    off = [(gap, position) for gap, position in gaps if not gap <= SAME * float(right.abs().max())]
    if not off:
        return "decoded in chunks the logits differ from the full forward pass"
    return f"decoded token by token the logits differ from the full forward pass from position {off[0][1]} on, by {max(off)[0]:.1e}"


def _gaps(parts: list[Tensor], right: Tensor) -> Iterator[tuple[int, float]]:
    whole = torch.cat(parts, dim=1)
    for position in range(whole.shape[1]):
        yield position, float((whole[:, position] - right[:, position]).abs().max())


def _fits(parts: list[Tensor], ids: Tensor, chunks: list[int], weights: dict[str, Tensor], slip: CacheVariant) -> bool:
    past: dict[Any, Any] = {}
    held = 0
    for calls, (own, part) in enumerate(zip(parts, ids.split(chunks, dim=1), strict=True)):
        kept = past[0][0].shape[2] if isinstance(past.get(0), tuple) else 0
        start = min(max(slip.start(held, part.shape[1], calls, kept), 0), SIZES[SIZE].context - part.shape[1])
        formula = Formula(SIZES[SIZE], weights, slip.changes, start=start, past=past)
        try:
            if not _agree(own, formula(part)):
                return False
        except (RuntimeError, IndexError):
            return False
        held += part.shape[1]
    return True


def slips() -> Iterator[CacheVariant]:
    """Every way that is tried."""
    position = "cache.position"
    yield CacheVariant(
        position, "kv-pos-restart-at-zero", "positions begin at 0 at each step", lambda held, new, calls, kept: 0
    )
    yield CacheVariant(
        position,
        "kv-pos-off-by-one",
        "positions of cached steps are one too high",
        lambda held, new, calls, kept: held + (held > 0),
    )
    yield CacheVariant(
        position,
        "kv-pos-one-too-low",
        "positions of cached steps are one too low",
        lambda held, new, calls, kept: held - (held > 0),
    )
    yield CacheVariant(
        position, "kv-pos-off-by-one", "positions count calls, not tokens", lambda held, new, calls, kept: calls
    )
    yield CacheVariant(
        position,
        "kv-pos-skipped-single-token",
        "a single token gets no position embedding",
        changes=(Replacement("embedding", lambda at, token, place: token if token.shape[1] == 1 else token + place),),
    )
    for says, start in _growing():
        yield CacheVariant(position, "kv-offset-grows-by-prompt", says, start)
    by_keys: Start = lambda held, new, calls, kept: kept  # noqa: E731 - one of a table of them
    by_count: Start = lambda held, new, calls, kept: held  # noqa: E731
    for start in (by_keys, by_count):
        for from_first in (True, False):
            yield CacheVariant(
                "cache.append",
                "kv-overwrites-last-slot",
                "new keys and values take the place of the last ones",
                start,
                (Replacement("cache", _overwriting(from_first)),),
            )
    yield CacheVariant(
        "cache.append",
        "kv-prepends-new",
        "new keys and values go before the old ones",
        changes=(Replacement("cache", _prepending),),
    )
    yield CacheVariant(
        "cache.append",
        "kv-prepends-new",
        "new keys and values go before the old ones, and the mask follows",
        changes=(Replacement("cache", _prepending), Replacement("attn.mask", _mask_of_prepended)),
    )
    for keys, values, says in ((False, True, "values"), (True, False, "keys"), (True, True, "keys and values")):
        for single in (True, False):
            for kept in (True, False):
                change = Replacement("cache", _stale(keys, values, single=single, kept=kept))
                cause = f"cached {says} lag one step behind"
                yield CacheVariant("cache.value", "kv-value-stale", cause, changes=(change,))
    yield CacheVariant(
        "cache.append",
        "kv-keys-not-kept",
        "old keys and values are forgotten at each step",
        changes=(Replacement("cache", _forgetting(1)),),
    )
    yield CacheVariant(
        "cache.append",
        "kv-keys-not-kept",
        "only the step before is kept",
        changes=(Replacement("cache", _forgetting(2)),),
    )
    yield CacheVariant(
        "cache.value",
        "kv-layers-share-memory",
        "all layers keep the first layer's values",
        changes=(Replacement("cache", _shared(False, True)),),
    )
    yield CacheVariant(
        "cache.value",
        "kv-layers-share-memory",
        "all layers keep the first layer's keys and values",
        changes=(Replacement("cache", _shared(True, True)),),
    )
    yield CacheVariant(
        "cache.mask",
        "kv-mask-top-left",
        "the mask is aligned at its top left: a new token sees the first keys only",
        changes=(Replacement("attn.mask", _masked(lambda T, S: torch.ones(T, S, dtype=torch.bool).tril())),),
    )
    yield CacheVariant(
        "cache.mask",
        "kv-prefill-no-mask",
        "the prefill has no mask",
        changes=(Replacement("attn.mask", _masked(lambda T, S: _seen(T, S) | (T == S))),),
    )
    yield CacheVariant(
        "cache.mask",
        "kv-chunk-no-mask",
        "several tokens at once see one another once there is a past",
        changes=(Replacement("attn.mask", _masked(lambda T, S: _seen(T, S) | (T != S))),),
    )
    yield CacheVariant(
        "cache.mask",
        "kv-chunk-no-mask",
        "decoding with a cache has no mask",
        changes=(Replacement("attn.mask", lambda at, scores: scores),),
    )


def _growing() -> Iterator[tuple[str, Start]]:
    says = "the offset grows by all that went before, not by what is new"

    def over(step: Callable[[int, int], int]) -> Start:
        """The offset after so many calls, when each call adds `step(held, new)`; the calls' sizes follow the plan."""
        return lambda held, new, calls, kept: step(held, new)

    yield says, over(lambda held, new: held if held <= 5 else 5 * (held - 4))
    yield says, over(lambda held, new: 2 * held)
    yield says, lambda held, new, calls, kept: held * (held + 1) // 2


def _seen(T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def _masked(allowed: Callable[[int, int], Tensor]) -> Callable[[At, Tensor], Tensor]:
    return lambda at, scores: scores.masked_fill(~allowed(*scores.shape[-2:]), -math.inf)


def _mask_of_prepended(at: At, scores: Tensor) -> Tensor:
    T, S = scores.shape[-2:]
    allowed = torch.cat((torch.ones(T, T, dtype=torch.bool).tril(), torch.ones(T, S - T, dtype=torch.bool)), dim=1)
    return scores.masked_fill(~allowed, -math.inf)


def _held(at: At) -> tuple[dict[Any, Any], Any]:
    assert at.formula.past is not None
    return at.formula.past, at.layer


def _prepending(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    past, layer = _held(at)
    if layer in past:
        k, v = torch.cat((k, past[layer][0]), dim=2), torch.cat((v, past[layer][1]), dim=2)
    past[layer] = k, v
    return k, v


def _overwriting(from_first: bool) -> Callable[[At, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Written into the last slot; from the first step after the prefill, or from the second."""

    def function(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = _held(at)
        if layer in past:
            old = past[layer]
            kept = old[0].shape[2] - (from_first or (layer, "written") in past)
            past[layer, "written"] = True
            k, v = torch.cat((old[0][:, :, :kept], k), dim=2), torch.cat((old[1][:, :, :kept], v), dim=2)
        past[layer] = k, v
        return k, v

    return function


def _stale(
    keys: bool, values: bool, *, single: bool, kept: bool
) -> Callable[[At, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """What is appended is what came before: the latest of what is kept, or what the call before brought."""

    def function(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = _held(at)
        new = k.shape[2]
        brought = past.get((layer, "last"))
        past[layer, "last"] = k, v
        if layer in past:
            old = past[layer]
            before = old if kept or brought is None else brought
            if not single or new == 1:
                a, b = before[0][:, :, -new:], before[1][:, :, -new:]
                k = a if keys and a.shape == k.shape else k
                v = b if values and b.shape == v.shape else v
            k, v = torch.cat((old[0], k), dim=2), torch.cat((old[1], v), dim=2)
        past[layer] = k, v
        return k, v

    return function


def _forgetting(calls: int) -> Callable[[At, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def function(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = _held(at)
        kept = [*past.get(layer, []), (k, v)][-calls:]
        past[layer] = kept
        return torch.cat([a for a, _ in kept], dim=2), torch.cat([b for _, b in kept], dim=2)

    return function


def _shared(keys: bool, values: bool) -> Callable[[At, Tensor, Tensor], tuple[Tensor, Tensor]]:
    def function(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = _held(at)
        new = k.shape[2]
        if layer in past:
            k, v = torch.cat((past[layer][0], k), dim=2), torch.cat((past[layer][1], v), dim=2)
        if layer:
            first = past[0]
            k = torch.cat((first[0][:, :, :-new], k[:, :, -new:]), dim=2) if keys else k
            v = torch.cat((first[1][:, :, :-new], v[:, :, -new:]), dim=2) if values else v
        past[layer] = k, v
        return k, v

    return function


def _agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= SAME * expected.abs().max())
