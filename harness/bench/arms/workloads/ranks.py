"""Work of several ranks: a training step on one global batch, by one process and by ranks of each kind."""

from __future__ import annotations

import dataclasses
import functools
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from harness.bench import costs
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.workloads import training
from harness.bench.arms.workloads.cost_terms import attention_cost_kind
from harness.bench.work import Work
from harness.core.errors import MissingAbility
from harness.core.rank_processes import Answer, Place
from harness.core.rank_server import Commands, RankServer
from harness.core.sizes import SIZES
from harness.oracle import rank_costs
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import DATA
from harness.subjects.ranks.traffic import counted
from harness.subjects.ranks.wrapped import RankModel, local, wrapped

RANKS = 2
SHALLOW = "124M-shallow"  # GPT-2's width in two layers: five models of 124M with AdamW would take 12 GB
FLOAT32 = 4  # bytes
ROUNDS = 9  # of the parts of a step, for the share of sending that is hidden
MOST_SPREAD = 0.5  # between the quartiles of that share


def _small(pool: ModelPool) -> ModelPool:
    """Return the pool, or one of the shallow size if its models are larger."""
    if pool.size.width * pool.size.layers <= SIZES[SHALLOW].width * SIZES[SHALLOW].layers:
        return pool
    return ModelPool(pool.subject, SIZES[SHALLOW], "cpu", places=pool.places, deviations=pool.deviations)


def _make_verifier(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int, batch: int = 4
) -> Verifier:
    return training._make_verifier(_small(pool), control, arm_specs, tokens=tokens, batch=batch)


@work_kind("ranks-step", make_verifier=_make_verifier)
def ranks_step(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int, batch: int = 4) -> Work:
    """Run forward, backward and AdamW on one global batch: in this process, or on ranks with one thread each.

    extras: the bytes that a rank sends in a step, by the kernel's count, and those of its collectives by rings; what it
    stores of parameters, gradients and moments; of data parallel ranks, the share of sending that the backward pass
    hides.
    """
    pool = _small(pool)
    kind = arm.options.get("ranks")
    if kind is None:
        work = training.training_step(pool, arm, copy, tokens=tokens, batch=batch)
        model = pool.model(arm, copy)
        size = sum(p.numel() * p.element_size() for p in model.module.parameters())
        figures = {"parameter_bytes": size, "gradient_bytes": size, "moment_bytes": 2 * size, "sent_bytes": 0}
        return dataclasses.replace(work, extras=lambda: {**work.extras(), **figures}, measures_memory=False)
    subject = pool.subject_for(arm)
    if not isinstance(subject, Parallelizes) or kind not in subject.parallel_program.functions:
        raise MissingAbility(f"{subject.name} has no function for {kind} ranks")
    server = RankServer(functools.partial(_commands, pool, arm, kind, tokens, batch), ranks=RANKS)
    cost = costs.training_step(pool.size, batch=batch, tokens=tokens, attention=attention_cost_kind(arm.attention))
    return Work(
        call=lambda: server.ask("step"),
        answer=lambda: server.ask("answer")[0]["logits"],
        tokens=batch * tokens,
        flops=cost.flops,
        extras=lambda: {**_figures(server, kind), **_closed_forms(pool, arm, kind, batch * tokens)},
        measures_memory=False,
    )


def _figures(server: RankServer, kind: str) -> dict[str, float]:
    found = server.ask("figures")
    figures = {key: max(float(answer[key]) for answer in found) for key in found[0]}
    if kind != DATA:
        return figures
    shares: list[float] = []
    for _ in range(ROUNDS):
        seconds = {}
        for command in ("step", "compute", "send"):
            started = time.perf_counter()
            server.ask(command)
            seconds[command] = time.perf_counter() - started
        shares.append((seconds["compute"] + seconds["send"] - seconds["step"]) / seconds["send"])
    low, middle, high = statistics.quantiles(shares, n=4)
    # Three times are subtracted: on a busy machine the rounds disagree, and the figure would be noise.
    return {**figures, "hidden_share": middle} if high - low < MOST_SPREAD else figures


def _closed_forms(pool: ModelPool, arm: ArmSpec, kind: str, positions: int) -> dict[str, float]:
    """Return the bytes that a rank sends in a step and stores of the parameters, in float32, by closed form."""
    shapes = [tuple(parameter.shape) for parameter in pool.subject_for(arm).build(pool.size).module.parameters()]
    elements = sum(map(math.prod, shapes))
    sent = rank_costs.sent_bytes(
        kind, pool.size, ranks=RANKS, elements=elements, positions=positions, element_bytes=FLOAT32
    )
    stored = FLOAT32 * rank_costs.stored_elements(kind, pool.size, ranks=RANKS, shapes=shapes)
    return {"sent_closed_form_bytes": sent, "parameter_closed_form_bytes": float(stored)}


def _commands(pool: ModelPool, arm: ArmSpec, kind: str, tokens: int, batch: int, place: Place) -> Commands:
    """Return what one rank does, by command."""
    subject = pool.subject_for(arm)
    assert isinstance(subject, Parallelizes)
    model = pool.restore(subject.build(pool.size, seed=0))
    rank = wrapped(subject, kind, place, model)
    ids, targets = pool.ids(rows=batch, length=tokens)
    step = _Step(rank, rank.rows(ids), rank.rows(targets))
    step()  # allocates the moments, and what the wrapper sets up at the first step
    start = [local(p).clone() for p in rank.module.parameters()]
    with torch.no_grad():
        for part, right in zip(start, _parts_at_the_start(pool, subject, kind, place), strict=True):
            part.copy_(right)

    def answer() -> Answer:
        step.restore(start)
        step()
        with torch.no_grad():
            logits = rank.model.logits(ids[:1])
        return {"logits": logits}

    def figures() -> Answer:
        with counted(place.ranks) as traffic:
            step.gradients()
        own = list(rank.module.parameters())
        stored: dict[str, list[Tensor]] = {
            "parameter_bytes": list(own),
            "gradient_bytes": [p.grad for p in own if p.grad is not None],
            "moment_bytes": [v for state in step.optimizer.state.values() for v in state.values() if v.ndim],
        }
        found = {name: float(sum(map(_bytes, tensors))) for name, tensors in stored.items()}
        rank.module.zero_grad(set_to_none=True)
        return {**found, "sent_bytes": float(traffic["wire"]), "sent_by_ring_bytes": float(traffic["ring"])}

    return {"step": _nothing_of(step), "answer": answer, "figures": figures, **_parts_of_a_step(step)}


def _parts_at_the_start(pool: ModelPool, subject: Parallelizes, kind: str, place: Place) -> list[Tensor]:
    """Return this rank's parts of the run's weights: what a new model has after it is wrapped."""
    again = wrapped(subject, kind, place, pool.restore(subject.build(pool.size, seed=0)))
    return [local(parameter).clone() for parameter in again.module.parameters()]


class _Step:
    """A training step of one rank."""

    def __init__(self, rank: RankModel, ids: Tensor, targets: Tensor) -> None:
        self.rank, self.ids, self.targets = rank, ids, targets
        self.optimizer = torch.optim.AdamW(rank.module.parameters(), **training.ADAMW, foreach=False)

    def __call__(self) -> None:
        self.gradients()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def gradients(self) -> None:
        """Run forward and backward; rows are shared evenly, so that the mean over ranks is the mean over targets."""
        self.rank.model.loss(self.ids, self.targets).backward()
        self.rank.average()

    def restore(self, start: list[Tensor]) -> None:
        """Reset the weights and the moments."""
        with torch.no_grad():
            for parameter, part in zip(self.rank.module.parameters(), start, strict=True):
                local(parameter).copy_(part)
            for state in self.optimizer.state.values():
                for value in state.values():
                    local(value).zero_()


def _parts_of_a_step(step: _Step) -> dict[str, Callable[[], None]]:
    """Return a step without sending, and the sending of its gradients alone, in messages of 25 MiB."""
    module = step.rank.module

    def compute() -> None:
        off: Any = getattr(module, "no_sync", None)
        if off is not None:
            with off():
                step()

    def send() -> None:
        numbers = sum(local(p).numel() for p in module.parameters())
        for piece in torch.zeros(numbers).split(25 * 2**20 // 4):
            dist.all_reduce(piece)

    return {"compute": compute, "send": send}


def _nothing_of(step: _Step) -> Callable[[], None]:
    return lambda: step()


def _bytes(tensor: Tensor) -> int:
    part = local(tensor)
    return part.numel() * part.element_size()
