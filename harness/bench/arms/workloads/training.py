"""Work of training: a whole step, and each of its parts alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.bench import costs
from harness.bench.arms.error_bounds import training_bound
from harness.bench.arms.model_pool import ModelPool, autocast, round_parameters
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import oracle_verifier
from harness.bench.arms.workloads.compilation import first_call_figures
from harness.bench.arms.workloads.cost_terms import attention_cost_kind, element_bytes
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.work import Work
from harness.subjects.compiled import eagerly
from harness.subjects.model import Model

# The lessons' recipe; the rate is the peak of their schedule. Fused: the loop over single tensors takes six times as
# long (0.95 s against 0.16 s at 124M on two cores), the same in every arm, and would hide what differs.
ADAMW: dict[str, Any] = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
FUSED = {"fused": True}
# AdamW reads four numbers a parameter and writes three, in place. Writing runs beside reading: compared with a
# streaming read, all seven would be 1.5 times the bandwidth of memory (measured; fused, which is the least).
READ_SHARE = 4 / 7
LAST_RATE = 6e-5  # of the lessons' schedule, a tenth of the peak


def adamw(model: Model, **implementation: Any) -> torch.optim.Optimizer:
    """Return AdamW by the lessons' recipe, fused unless `implementation` says otherwise."""
    return torch.optim.AdamW(model.module.parameters(), **{**ADAMW, **(implementation or FUSED)})


def with_allocated_state(optimizer: torch.optim.Optimizer, model: Model) -> torch.optim.Optimizer:
    """Allocate the optimizer's state, leave the weights unchanged, and return the optimizer.

    Otherwise the first step, whose memory is measured, would allocate the state.
    """
    for parameter in model.module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
    return optimizer


def with_zeroed_state(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Reset the optimizer's state to zero, as before its first step, and return the optimizer."""
    for state in optimizer.state.values():
        for value in state.values():
            value.zero_()
    return optimizer


def logits_after_step(
    pool: ModelPool,
    model: Model,
    gradients: Callable[[], object],
    *,
    ids: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    stored_in: torch.dtype | None = None,
    cast: str | None = None,
) -> Tensor:
    """Return the logits (B, T, V) of `ids` after one step of AdamW from the run's weights.

    A fault in the forward pass, the backward pass or the step shows in them. The step is taken by `optimizer`, which is
    the one that is timed, or by AdamW with the lessons' recipe. With `stored_in`, the parameters are rounded to that
    dtype each time they are written. The logits of a compiled model are computed eagerly: the step is what is
    verified, and another graph would take as long to compile again.
    """
    pool.restore(model, stored_in)
    gradients()
    (with_zeroed_state(optimizer) if optimizer else adamw(model)).step()
    model.module.zero_grad(set_to_none=True)
    round_parameters(model, stored_in)
    with torch.no_grad(), autocast(pool.device, cast), eagerly():
        return model.logits(ids)


def _make_verifier(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int, batch: int = 1
) -> Verifier:
    ids, targets = pool.ids(rows=batch, length=tokens)

    def answer(model: Model, dtype: torch.dtype | None = None) -> Tensor:
        return logits_after_step(pool, model, lambda: model.loss(ids, targets).backward(), ids=ids[:1], stored_in=dtype)

    bound = training_bound(pool.size)
    return oracle_verifier(pool, control, arm_specs, answer, bound=bound, rounded_answer=answer)


def _work(
    pool: ModelPool,
    arm: ArmSpec,
    call: Callable[[], object],
    answer: Callable[[], Tensor],
    cost: costs.Cost,
    *,
    tokens: int,
    **more: Any,
) -> Work:
    return Work(
        call=call,
        answer=answer,
        tokens=tokens,
        flops=cost.flops or None,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
        **more,
    )


@work_kind("training-step", make_verifier=_make_verifier)
def training_step(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Run forward, backward and AdamW on one batch, without dropout, so that the answer is the same each time.

    The arm's option `parts` accumulates the gradients of that many parts of the batch. Its option `checkpointing`
    recomputes the activations of each block in the backward pass.
    """
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(arm, copy)
    parts, checkpointing = arm.options.get("parts", 1), arm.options.get("checkpointing", False)

    def gradients() -> None:
        for part_ids, part_targets in zip(ids.chunk(parts), targets.chunk(parts), strict=True):
            with autocast(pool.device, arm.autocast), _checkpointed_blocks(model, checkpointing):
                loss = model.loss(part_ids, part_targets) * (part_ids.shape[0] / batch)
            loss.backward()

    optimizer = with_allocated_state(adamw(model), model)

    def call() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that no arm's gradients take memory while another arm works

    cost = costs.training_step(
        pool.size,
        batch=batch // parts,
        tokens=tokens,
        accumulation=parts,
        checkpointing=checkpointing,
        attention=attention_cost_kind(arm.attention),
        element_bytes=element_bytes(arm),
        master_bytes=element_bytes(arm),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    answer = functools.partial(
        logits_after_step, pool, model, gradients, ids=ids[:1], optimizer=optimizer, cast=arm.autocast,
        stored_in=getattr(torch, arm.dtype) if arm.dtype != "float32" else None,
    )  # fmt: skip
    model_flops = costs.model_flops(pool.size, tokens=tokens) * ids.numel()
    first_call = first_call_figures(arm, gradients)
    return _work(
        pool, arm, call, answer, cost, tokens=ids.numel(),
        extras=lambda: {"model_flops": model_flops, **first_call()},
    )  # fmt: skip


@contextlib.contextmanager
def _checkpointed_blocks(model: Model, enabled: bool) -> Iterator[None]:
    """Recompute the activations of the model's blocks in the backward pass, if enabled (Chen et al. 2016)."""
    blocks: list[nn.Module] = []
    if enabled:
        blocks = [model.component(f"transformer.h.{layer}") for layer in range(model.size.layers)]
    for block in blocks:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


@work_kind("loss", make_verifier=_make_verifier)
def loss(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Run the forward pass of training: the loss, with all activations that the backward pass needs."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(arm, copy)

    def call() -> Tensor:
        with autocast(pool.device, arm.autocast):
            return model.loss(ids, targets)

    cost = costs.forward(
        pool.size, batch=batch, tokens=tokens, attention=attention_cost_kind(arm.attention),
        element_bytes=element_bytes(arm),
    )  # fmt: skip
    answer = functools.partial(logits_after_step, pool, model, lambda: call().backward(), ids=ids[:1])
    return _work(pool, arm, call, answer, cost, tokens=ids.numel())


@work_kind("backward", make_verifier=_make_verifier)
def backward(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Run the backward pass alone, repeatedly over one graph."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(arm, copy)
    graph: list[Tensor] = []

    def forward() -> None:
        graph[:] = [model.loss(ids, targets)]

    def gradients() -> None:
        forward()
        call()

    def call() -> None:
        model.module.zero_grad(set_to_none=True)
        graph[0].backward(retain_graph=True)

    cost = costs.backward(
        pool.size, batch=batch, tokens=tokens, attention=attention_cost_kind(arm.attention),
        element_bytes=element_bytes(arm),
    )  # fmt: skip
    answer = functools.partial(logits_after_step, pool, model, gradients, ids=ids[:1])

    def answer_and_clear() -> Tensor:
        logits = answer()
        graph.clear()  # its activations belong to weights that are about to change
        return logits

    return _work(
        pool, arm, call, answer_and_clear, cost, tokens=ids.numel(), prepare=lambda: None if graph else forward()
    )


@work_kind("optimizer", make_verifier=_make_verifier)
def optimizer(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Run AdamW's step alone, each time with the gradients of the same batch."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(arm, copy)
    implementation = arm.options.get("optimizer", FUSED)
    adamw_optimizer = with_allocated_state(adamw(model, **implementation), model)

    def gradients() -> None:
        model.loss(ids, targets).backward()

    def prepare() -> None:
        if all(parameter.grad is None for parameter in model.module.parameters()):
            gradients()

    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    cost = costs.optimizer_step(parameters, element_bytes=element_bytes(arm)) * READ_SHARE
    answer = functools.partial(logits_after_step, pool, model, gradients, ids=ids[:1], optimizer=adamw_optimizer)
    return _work(pool, arm, adamw_optimizer.step, answer, cost, tokens=ids.numel(), prepare=prepare)


@work_kind("weight-update", make_verifier=_make_verifier)
def weight_update(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Run a training step with parameters in the arm's dtype or in float32, and report the updates that got lost.

    lost_at_peak_rate, lost_at_last_rate: the share of the parameters with a gradient that an update leaves unchanged,
    because the step is below half of the dtype's spacing there.
    """
    work = training_step(pool, arm, copy, tokens=tokens, batch=batch)
    model = pool.model(arm, copy)
    ids, targets = pool.ids(rows=batch, length=tokens)

    def extras() -> dict[str, float]:
        return {**work.extras(), **_lost_updates(pool, model, ids, targets, arm)}

    return _work(
        pool, arm, work.call, work.answer, costs.Cost(work.flops or 0.0, work.moved_bytes or 0.0),
        tokens=work.tokens, extras=work.extras if copy else extras,  # a twin's are the same
    )  # fmt: skip


def _lost_updates(pool: ModelPool, model: Model, ids: Tensor, targets: Tensor, arm: ArmSpec) -> dict[str, float]:
    """Return the share of the parameters with a gradient that one step of AdamW leaves unchanged, at either rate."""
    pool.restore(model)
    with autocast(pool.device, arm.autocast):
        model.loss(ids, targets).backward()
    parameters = list(model.module.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    moving = [torch.zeros_like(p, dtype=torch.bool) if p.grad is None else p.grad != 0 for p in parameters]
    found = {}
    for name, rate in (("lost_at_peak_rate", ADAMW["lr"]), ("lost_at_last_rate", LAST_RATE)):
        torch.optim.AdamW(parameters, **{**ADAMW, **FUSED, "lr": rate}).step()
        lost = sum(int(((p == old) & m).sum()) for p, old, m in zip(parameters, before, moving, strict=True))
        found[name] = lost / max(1, sum(int(m.sum()) for m in moving))
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
    model.module.zero_grad(set_to_none=True)
    return found
