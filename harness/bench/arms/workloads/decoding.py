"""Work of decoding: the logits of the next position, with a cache of the positions before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.bench import costs
from harness.bench.arms.error_bounds import float32_bound
from harness.bench.arms.model_pool import ModelPool, autocast
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import Answers, oracle_verifier
from harness.bench.arms.workloads.cost_terms import element_bytes, weight_bytes
from harness.bench.tensor_bytes import tensor_bytes, weight_figures
from harness.bench.work import Sample, Work
from harness.core.errors import MissingAbility
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, ChoosesCache, Subject

VERIFIED_STEPS = 8  # of decoding; each is a row of logits
WINDOW = 64  # positions that are decoded before the cache is filled again


def caching_subject(subject: Subject) -> Caches:
    """Return the subject if it decodes step by step with a cache. Raises MissingAbility otherwise."""
    if isinstance(subject, Caches):
        return subject
    raise MissingAbility(f"{subject.name} has no ability 'Caches': it does not decode step by step with a cache")


def new_cache(subject: Subject, model: Model, arm: ArmSpec, rows: int) -> Any:
    """Return an empty cache for `rows` sequences, of the kind that the arm names, if it names one.

    Raises MissingAbility if the subject has no cache, or does not offer that kind.
    """
    caches, kind = caching_subject(subject), arm.options.get("cache")
    if kind is None:
        return caches.new_cache(model, rows)
    if not isinstance(subject, ChoosesCache) or kind not in subject.caches:
        raise MissingAbility(f"{subject.name} offers no choice of a {kind} cache: new_cache(batch_size, growing=True)")
    return subject.new_cache(model, rows, kind=kind)


def _make_verifier(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, context: int, batch: int = 1
) -> Verifier:
    ids, _ = pool.ids(rows=batch, length=_end(pool, context))

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids[:, : context + VERIFIED_STEPS])[:, context:]

    @torch.no_grad()
    def sampled(model: Model) -> Answers:
        later = model.logits(ids[_kept(batch)])[:, context:]  # (rows, steps, V)
        return lambda position: later[:, position - context]

    def answer_of(kept: Answers) -> Tensor:
        return torch.stack([kept(position) for position in range(context, context + VERIFIED_STEPS)], dim=1)

    return oracle_verifier(
        pool, control, arm_specs, answer, bound=float32_bound(pool.size), sampled=sampled,
        answer_of=answer_of if len(_kept(batch)) == batch else None,
    )  # fmt: skip


def _kept(batch: int) -> list[int]:
    """Return the rows of the batch that are kept of a timed call: the first and the last."""
    return sorted({0, batch - 1})


def _end(pool: ModelPool, context: int) -> int:
    """Return the position at which the cache is filled again. Raises MissingAbility if none is left to decode."""
    end = min(pool.size.context, context + WINDOW)
    if end - context < VERIFIED_STEPS:
        most = pool.size.context - VERIFIED_STEPS
        raise MissingAbility(f"a context of {context} leaves no room to decode in; at most {most} are compared")
    return end


@work_kind("decode", make_verifier=_make_verifier)
def decode(pool: ModelPool, arm: ArmSpec, copy: int, *, context: int, batch: int = 1) -> Work:
    """Compute one cached step: the logits (batch, 1, V) of the next position, after `context` and up to WINDOW more.

    The positions of different arms differ by less than WINDOW. The cache is filled again between blocks.
    """
    subject, model = pool.subject_for(arm), pool.model(arm, copy)
    end = _end(pool, context)
    ids, _ = pool.ids(rows=batch, length=end)
    caches = caching_subject(subject)
    cache: Any = None
    position, filled = end, 0

    @torch.no_grad()
    def fill() -> None:
        nonlocal cache, position, filled
        with autocast(pool.device, arm.autocast):
            cache = new_cache(subject, model, arm, batch)
            caches.step(model, ids[:, :context], cache)
        position, filled = context, tensor_bytes(cache)

    def prepare() -> None:
        if end - position < VERIFIED_STEPS:
            fill()

    @torch.no_grad()
    def call() -> Tensor:
        nonlocal position
        if position == end:
            fill()
        with autocast(pool.device, arm.autocast):
            logits = caches.step(model, ids[:, position : position + 1], cache)
        position += 1
        return logits

    def sample(logits: Tensor, number: int) -> Sample:
        return Sample(position - 1, logits[_kept(batch), 0].clone())  # each step has a token and a place of its own

    def answer() -> Tensor:
        fill()
        return torch.cat([call() for _ in range(VERIFIED_STEPS)], dim=1)  # (B, steps, V)

    def extras() -> dict[str, float]:
        if cache is None:
            fill()
        expected = costs.cache_bytes(pool.size, tokens=context, batch=batch, element_bytes=element_bytes(arm))
        return {**weight_figures(model.module), "cache_bytes": filled, "cache_closed_form_bytes": expected}

    middle = (context + end) // 2
    cost = costs.decode_step(
        pool.size, batch=batch, context=middle, element_bytes=element_bytes(arm), weight_bytes=weight_bytes(arm)
    )
    return Work(
        call=call,
        answer=answer,
        sample=sample,
        prepare=prepare,
        tokens=batch,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
        extras=extras,
    )
