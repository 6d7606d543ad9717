"""Work of training: a whole step, and its parts by themselves."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from harness.bench import costs
from harness.bench.arms.model_pool import ModelPool, autocast, round_parameters
from harness.bench.arms.models import counted_as, element_bytes, first_call, near_truth
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.truth import training_bound
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.comparison import Work
from harness.subjects.model import Model

# The lessons' recipe; the rate is the peak of their schedule. Fused: the loop over single tensors takes six times as
# long (0.95 s against 0.16 s at 124M on two cores), the same in every arm, and would hide what differs.
ADAMW: dict[str, Any] = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1}
FUSED = {"fused": True}
# AdamW reads four numbers a parameter and writes three, in place. What is written leaves beside what is read: held
# against a streaming read, all seven would be 1.5 times what memory gives (measured; fused, which is the least).
READ_SHARE = 4 / 7
LAST_RATE = 6e-5  # of the lessons' schedule, a tenth of the peak


def adamw(model: Model, **implementation: Any) -> torch.optim.Optimizer:
    """AdamW by the lessons' recipe, fused unless another implementation is asked for."""
    return torch.optim.AdamW(model.module.parameters(), **{**ADAMW, **(implementation or FUSED)})


def begun(optimizer: torch.optim.Optimizer, model: Model) -> torch.optim.Optimizer:
    """The optimizer with its state allocated, and the weights as they were: no step that is weighed makes it first."""
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


def anew(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer as it began, with what it remembers of its steps zero."""
    for remembered in optimizer.state.values():
        for value in remembered.values():
            value.zero_()
    return optimizer


def after_a_step(
    pool: ModelPool,
    model: Model,
    gradients: Callable[[], object],
    *,
    ids: Tensor,
    optimizer: torch.optim.Optimizer | None = None,
    stored_in: torch.dtype | None = None,
    cast: str | None = None,
    compiled: bool = False,
) -> Tensor:
    """The logits after one step of AdamW from the run's weights: a fault in forward, backward or step shows in them.

    The step is the given optimizer's, which is the one that gets timed, or that of one by the lessons' recipe.
    With `stored_in`, the parameters are rounded to that type whenever they are written. Of a `compiled` model these
    logits are computed eagerly: the step is what is judged, and another graph would take as long to compile again.
    """
    pool.restore(model, stored_in)
    gradients()
    (anew(optimizer) if optimizer else adamw(model)).step()
    model.module.zero_grad(set_to_none=True)
    round_parameters(model, stored_in)
    eagerly = torch.compiler.set_stance("force_eager") if compiled else contextlib.nullcontext()
    with torch.no_grad(), autocast(pool.device, cast), eagerly:
        return model.logits(ids)


def _judge(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int, batch: int = 1) -> Verifier:
    ids, targets = pool.ids(rows=batch, length=tokens)

    def answer(model: Model, dtype: torch.dtype | None = None) -> Tensor:
        return after_a_step(pool, model, lambda: model.loss(ids, targets).backward(), ids=ids[:1], stored_in=dtype)

    bound = training_bound(pool.size)
    return near_truth(pool, control, arm_specs, answer, bound=bound, stored=answer)


def _work(
    pool: ModelPool,
    way: ArmSpec,
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
        computes=way.computes,
        **more,
    )


@work_kind("training-step", judge=_judge)
def training_step(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """Forward, backward and AdamW on one batch; no dropout, so that the answer is the same each time.

    `parts` of the way's options adds up the gradients of so many parts of the batch; `checkpointing` computes the
    activations of each block again.
    """
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(way, copy)
    parts, again = way.options.get("parts", 1), way.options.get("checkpointing", False)

    def gradients() -> None:
        for some, wanted in zip(ids.chunk(parts), targets.chunk(parts), strict=True):
            with autocast(pool.device, way.autocast), _checkpointing(model, again):
                loss = model.loss(some, wanted) * (some.shape[0] / batch)
            loss.backward()

    optimizer = begun(adamw(model), model)

    def call() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that no arm keeps its gradients while another works

    cost = costs.training_step(
        pool.size,
        batch=batch // parts,
        tokens=tokens,
        accumulation=parts,
        checkpointing=again,
        attention=counted_as(way.attention),
        element_bytes=element_bytes(way),
        master_bytes=element_bytes(way),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    answer = functools.partial(
        after_a_step, pool, model, gradients, ids=ids[:1], optimizer=optimizer, cast=way.autocast,
        compiled=way.compiled, stored_in=getattr(torch, way.dtype) if way.dtype != "float32" else None,
    )  # fmt: skip
    model_flops = costs.model_flops(pool.size, tokens=tokens) * ids.numel()
    compiling = first_call(way, gradients)
    return _work(
        pool, way, call, answer, cost, tokens=ids.numel(),
        extras=lambda: {"model_flops": model_flops, **compiling()},
    )  # fmt: skip


class _checkpointing:  # noqa: N801 - a context manager, used like a function
    """While open, the blocks of a model keep no activations for the backward pass (Chen et al. 2016)."""

    def __init__(self, model: Model, wanted: bool) -> None:
        self.blocks: list[nn.Module] = []
        if wanted:
            self.blocks = [model.component(f"transformer.h.{layer}") for layer in range(model.size.layers)]

    def __enter__(self) -> None:
        for block in self.blocks:
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False)

    def __exit__(self, *raised: object) -> None:
        for block in self.blocks:
            del block.forward


@work_kind("loss", judge=_judge)
def loss(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """The forward pass of training: the loss, with everything kept that the backward pass needs."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(way, copy)

    def call() -> Tensor:
        with autocast(pool.device, way.autocast):
            return model.loss(ids, targets)

    cost = costs.forward(
        pool.size, batch=batch, tokens=tokens, attention=counted_as(way.attention),
        element_bytes=element_bytes(way),
    )  # fmt: skip
    answer = functools.partial(after_a_step, pool, model, lambda: call().backward(), ids=ids[:1])
    return _work(pool, way, call, answer, cost, tokens=ids.numel())


@work_kind("backward", judge=_judge)
def backward(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """The backward pass alone, again and again over one graph."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(way, copy)
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
        pool.size, batch=batch, tokens=tokens, attention=counted_as(way.attention),
        element_bytes=element_bytes(way),
    )  # fmt: skip
    answer = functools.partial(after_a_step, pool, model, gradients, ids=ids[:1])

    def answered() -> Tensor:
        found = answer()
        graph.clear()  # it holds the activations, and the weights that it was made from are about to change
        return found

    return _work(pool, way, call, answered, cost, tokens=ids.numel(), prepare=lambda: None if graph else forward())


@work_kind("optimizer", judge=_judge)
def optimizer(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """AdamW's step alone, with the gradients of one batch kept."""
    ids, targets = pool.ids(rows=batch, length=tokens)
    model = pool.model(way, copy)
    implementation = way.options.get("optimizer", FUSED)
    stepping = begun(adamw(model, **implementation), model)

    def gradients() -> None:
        model.loss(ids, targets).backward()

    def prepare() -> None:
        if all(parameter.grad is None for parameter in model.module.parameters()):
            gradients()

    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    cost = costs.optimizer_step(parameters, element_bytes=element_bytes(way)) * READ_SHARE
    answer = functools.partial(after_a_step, pool, model, gradients, ids=ids[:1], optimizer=stepping)
    return _work(pool, way, stepping.step, answer, cost, tokens=ids.numel(), prepare=prepare)


@work_kind("weight-update", judge=_judge)
def weight_update(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int, batch: int = 1) -> Work:
    """A training step whose parameters are the way's type alone, or masters in float32; and what of it got lost.

    `lost_at_peak_rate` and `lost_at_last_rate`: the share of the parameters that an update moves in float32 and that
    stand where they stood, because the step is below half of bfloat16's spacing there.
    """
    work = training_step(pool, way, copy, tokens=tokens, batch=batch)
    model = pool.model(way, copy)
    ids, targets = pool.ids(rows=batch, length=tokens)

    def extras() -> dict[str, float]:
        return {**work.extras(), **_lost(pool, model, ids, targets, way)}

    return _work(
        pool, way, work.call, work.answer, costs.Cost(work.flops or 0.0, work.moved_bytes or 0.0),
        tokens=work.tokens, extras=work.extras if copy else extras,  # a twin's are the same
    )  # fmt: skip


def _lost(pool: ModelPool, model: Model, ids: Tensor, targets: Tensor, way: ArmSpec) -> dict[str, float]:
    """The share of the parameters with a gradient that one step of AdamW leaves where they were, at either rate."""
    pool.restore(model)
    with autocast(pool.device, way.autocast):
        model.loss(ids, targets).backward()
    parameters = list(model.module.parameters())
    before = [parameter.detach().clone() for parameter in parameters]
    moving = [torch.zeros_like(p, dtype=torch.bool) if p.grad is None else p.grad != 0 for p in parameters]
    found = {}
    for named, rate in (("lost_at_peak_rate", ADAMW["lr"]), ("lost_at_last_rate", LAST_RATE)):
        torch.optim.AdamW(parameters, **{**ADAMW, **FUSED, "lr": rate}).step()
        lost = sum(int(((p == old) & m).sum()) for p, old, m in zip(parameters, before, moving, strict=True))
        found[named] = lost / max(1, sum(int(m.sum()) for m in moving))
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
    model.module.zero_grad(set_to_none=True)
    return found
