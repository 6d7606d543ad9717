"""Work of a forward pass: the logits of every position, without gradients."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.bench import costs
from harness.bench.arms.error_bounds import float32_bound
from harness.bench.arms.model_pool import ModelPool, autocast
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import Answers, kept_rows, oracle_verifier, sample_rows
from harness.bench.arms.workloads.compilation import as_cuda_graph, first_call_figures
from harness.bench.arms.workloads.cost_terms import attention_cost_kind, element_bytes
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.tensor_bytes import weight_figures
from harness.bench.work import Work
from harness.subjects.model import Model


def _make_verifier(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int, batch: int = 1
) -> Verifier:
    ids, _ = pool.ids(rows=batch, length=tokens)

    @torch.no_grad()
    def answer(model: Model) -> Tensor:
        return model.logits(ids)

    def sampled(model: Model) -> Answers:
        @functools.lru_cache(maxsize=1)
        @torch.no_grad()
        def kept(number: int) -> Tensor:
            return kept_rows(model.logits(pool.ids(rows=batch, length=tokens, number=number)[0]))

        return kept

    return oracle_verifier(pool, control, arm_specs, answer, bound=float32_bound(pool.size), sampled=sampled)


@work_kind("forward", make_verifier=_make_verifier)
def forward(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Compute the logits (batch, tokens, V) of every position of (batch, tokens) ids, without gradients."""
    ids, _ = pool.ids(rows=batch, length=tokens)
    model = pool.model(arm, copy)

    @torch.no_grad()
    def call() -> Tensor:
        with autocast(pool.device, arm.autocast):
            return model.logits(ids)

    if arm.options.get("graph"):
        call = as_cuda_graph(call)
    first_call = first_call_figures(arm, call)
    cost = costs.forward(
        pool.size,
        batch=batch,
        tokens=tokens,
        attention=attention_cost_kind(arm.attention),
        element_bytes=element_bytes(arm),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        use_input=functools.partial(pool.use_ids, ids),
        sample=sample_rows,
        tokens=ids.numel(),
        extras=lambda: {**weight_figures(model.module), **first_call()},
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
    )
