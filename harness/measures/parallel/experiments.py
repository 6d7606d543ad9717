"""What every rank does and answers: one function for each question."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.rank_processes import Answer, Place, Question
from harness.measures.parallel.global_batch import ACCUMULATED, CLIP, PLAIN, STEPS, GlobalBatch, global_batches
from harness.measures.parallel.rank_model import build, numbered
from harness.subjects.dropout_calls import has_dropout_setting
from harness.subjects.model import Model
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import TENSOR, ParallelProgram
from harness.subjects.ranks.traffic import counted
from harness.subjects.ranks.wrapped import RankModel, gradient_parts, local, parts, wrapped

DTYPES = ("float64", "float32")
# With the usual epsilon of 1e-8 the first step is the sign of the gradient: where that is about 0, rounding decides it.
ADAMW: dict[str, Any] = {"lr": 1e-2, "betas": (0.9, 0.95), "eps": 1e-2, "weight_decay": 0.1, "foreach": False}
# The questions that can be asked only of a program that has a function for the role.
NEEDS = {"accumulated": "gradients", "masks": "seed", "state": "state", "save": "save", "share": "share"}
RATE = 0.5  # of dropout, where masks are compared


def questions(subject: Parallelizes, kind: str, size: str) -> dict[str, Question]:
    """Return what is asked of the ranks of one kind of parallelism, in order."""
    asked: dict[str, Callable[..., Answer]] = {
        "layout": layout,
        "plain": functools.partial(training, case=PLAIN),
        "accumulated": functools.partial(training, case=ACCUMULATED),
        "start": start,
        "masks": masks,
        "state": state_of_ranks,
        "save": save,
        "share": share,
    }
    has = subject.parallel_program.functions
    left_out = {name for name, role in NEEDS.items() if role not in has}
    if not has_dropout_setting(subject):
        left_out.add("masks")
    if kind == TENSOR:  # its ranks compute the same rows
        left_out.add("share")
    return {name: functools.partial(each, subject, kind, size) for name, each in asked.items() if name not in left_out}


def layout(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Return which elements of one process's parameters this rank has, in each of its parameters."""
    rank = wrapped(subject, kind, place, numbered(build(subject, size, "float64")))
    return {"numbers": [part.round().long() for part in parts(rank.module)]}


def training(subject: Parallelizes, kind: str, size: str, place: Place, *, case: str) -> Answer:
    """Return what a rank computes in some steps of training, in both precisions."""
    found: dict[str, Any] = {}
    for dtype in DTYPES:
        rank = wrapped(subject, kind, place, build(subject, size, dtype))
        optimizer = LocalAdamW(rank.module)
        steps: list[dict[str, Any]] = []
        for number in range(STEPS[case]):
            steps.append(_step(rank, optimizer, global_batches(size, case)[number], case, first=number == 0))
        found[dtype] = {"steps": steps, **({"after": parts(rank.module)} if is_trained(rank.program, case) else {})}
    return found


def is_trained(program: ParallelProgram, case: str) -> bool:
    """Return True if the weights are changed in a case: once is enough, and stepping sharded weights takes time."""
    return case == ACCUMULATED or "gradients" not in program.functions


def clips(program: ParallelProgram, case: str) -> bool:
    """Return True if the program's function for clipping is used in a case: where the weights are changed."""
    return "clip" in program.functions and is_trained(program, case)


def _step(rank: RankModel, optimizer: LocalAdamW, batch: GlobalBatch, case: str, *, first: bool) -> dict[str, Any]:
    """Do one step and return its numbers: what is sent in a later one, because the first sets up what it sends."""
    counting: AbstractContextManager[dict[str, Any]] = counted(rank.place.ranks)
    if first and STEPS[case] > 1:
        counting = contextlib.nullcontext({})
    with counting as traffic:
        step = _gradient(rank, batch, case)
    if first:
        step["gradients"] = gradient_parts(rank.module)
    if clips(rank.program, case):
        norm = rank.call("clip", limit=CLIP, parameters=list(rank.module.parameters()))
        step["norm"] = _number(norm)
        if first:
            step["clipped"] = gradient_parts(rank.module)
    own = list(rank.module.parameters())
    gradients = [parameter.grad for parameter in own if parameter.grad is not None]
    memory = {"parameters": sum(map(_size, own)), "gradients": sum(map(_size, gradients))}
    if is_trained(rank.program, case):
        optimizer.step()
        memory["optimizer"] = optimizer.size
    rank.module.zero_grad(set_to_none=True)
    return {**step, "traffic": traffic, "memory": memory}


def _gradient(rank: RankModel, batch: GlobalBatch, case: str) -> dict[str, Any]:
    """Compute the gradient of one step; return the loss, of the rank or of all as the program says, and the logits."""
    if case == ACCUMULATED:
        own = [(rank.rows(ids), rank.rows(targets)) for ids, targets in batch]
        return {"loss": _number(rank.call("gradients", batches=own))}
    ((ids, targets),) = batch
    logits, loss = rank.model.logits_and_loss(rank.rows(ids), rank.rows(targets))
    with rank.model.precision():
        loss.backward()
        rank.average()
    return {"loss": float(loss.detach()), "logits": logits.detach().clone()}


def _number(answer: Any) -> float | None:
    """Return a loss or a norm that a program returns as a number; None if it returns something else."""
    from torch.distributed.tensor import DTensor  # here to save start-up time

    if isinstance(answer, DTensor):  # torch's clip_grad_norm_ returns one, whose value is on all ranks together
        answer = answer.full_tensor()
    return float(answer) if isinstance(answer, float | int | Tensor) else None


def start(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Return this rank's weights after wrapping, if each rank came with weights of its own."""
    model = build(subject, size, "float64")
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.fill_(1.0 + place.rank)
    return {"weights": parts(wrapped(subject, kind, place, model).module)}


def masks(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Return the logits of the same ids with dropout on, after the program's own seeding."""
    rank = wrapped(subject, kind, place, build(subject, size, "float64", dropout=RATE))
    rank.call("seed", seed=11)
    rank.module.train()
    ((ids, _),) = global_batches(size, PLAIN)[0]
    with torch.no_grad():
        return {"logits": rank.model.logits(ids)}


def state_of_ranks(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Return what the program's own function returns as the weights of the whole model."""
    rank = wrapped(subject, kind, place, build(subject, size, "float64"))
    state = rank.call("state")
    if not isinstance(state, Mapping):
        return {"state": {}}
    return {"state": {name: local(each) for name, each in state.items() if isinstance(each, Tensor)}}


def save(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Do one step and save; return this rank's weights and moments."""
    rank = wrapped(subject, kind, place, build(subject, size, "float64"))
    optimizer = adamw(rank.module)
    _gradient(rank, global_batches(size, PLAIN)[0], PLAIN)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    rank.call("save", optimizer=optimizer, path=str(place.folder / "checkpoint"))
    return {"weights": parts(rank.module), "moments": _moments(rank.module, optimizer)}


def load(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Read what other ranks saved in the folder, into another model; return this rank's weights and moments."""
    model = build(subject, size, "float64")
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(-0.5)
    rank = wrapped(subject, kind, place, model)
    optimizer = adamw(rank.module)
    answer = rank.call("load", optimizer=optimizer, path=str(place.folder / "checkpoint"))
    module = answer if isinstance(answer, nn.Module) else rank.module
    return {"weights": parts(module), "moments": _moments(module, optimizer)}


def share(subject: Parallelizes, kind: str, size: str, place: Place) -> Answer:
    """Return the rows of a numbered batch that the program gives this rank."""
    values = {
        "batch": torch.arange(8 * 3).view(8, 3),
        "rank": place.rank,
        "ranks": place.ranks,
        "data rank": place.rank,
    }
    taken = subject.parallel_program.function("share")(values)
    return {"rows": taken if isinstance(taken, Tensor) else torch.as_tensor(taken)}


def adamw(module: nn.Module) -> torch.optim.Optimizer:
    """Return AdamW, one tensor after the other: its other forms refuse parameters of which some are sharded."""
    return torch.optim.AdamW(module.parameters(), **ADAMW)


class LocalAdamW:
    """AdamW on this rank's parts of all parameters: it is computed element by element, so that parts are enough.

    On DTensors torch's AdamW does the same, and takes 2 s to find out how each of its operations is sharded.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self.own: list[Tensor] = []
        self.optimizer: torch.optim.Optimizer | None = None

    def step(self) -> None:
        """Do one step with the gradients of the module."""
        own, gradients = [local(p) for p in self.module.parameters()], gradient_parts(self.module)
        if self.optimizer is None:
            self.own = own
            self.optimizer = torch.optim.AdamW(own, **ADAMW)
        for mine, part, gradient in zip(self.own, own, gradients, strict=True):
            if mine.data_ptr() != part.data_ptr():  # a wrapper may have replaced it
                mine.set_(part)  # type: ignore[call-overload]  # a tensor's storage
            mine.grad = gradient
        self.optimizer.step()

    @property
    def size(self) -> int:
        """The bytes of the moments."""
        assert self.optimizer is not None
        states = [value for state in self.optimizer.state.values() for value in state.values()]
        return sum(_size(value) for value in states if isinstance(value, Tensor) and value.ndim)


def in_one_process(model: Model, size: str, case: str, *, clipped: bool) -> dict[str, Any]:
    """Return what one process computes on the global batches: the gradient is that of the mean over all targets."""
    module = model.module
    optimizer = adamw(module)
    found: dict[str, Any] = {"losses": [], "norms": []}
    for batch in global_batches(size, case):
        ids, targets = (torch.cat(each) for each in zip(*batch, strict=True))
        logits, loss = model.logits_and_loss(ids, targets)
        with model.precision():
            loss.backward()
        if not found["losses"]:
            found |= {"logits": logits.detach(), "gradients": gradient_parts(module)}
        found["losses"].append(float(loss.detach()))
        if clipped:
            found["norms"].append(float(nn.utils.clip_grad_norm_(module.parameters(), CLIP)))
            if "clipped" not in found:
                found["clipped"] = gradient_parts(module)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    found["after"] = parts(module)
    return found


def _moments(module: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return this rank's part of the first moment of every parameter; zeros where there is none."""
    return [
        local(optimizer.state.get(parameter, {}).get("exp_avg", torch.zeros_like(parameter)), parameter).clone()
        for parameter in module.parameters()
    ]


def _size(tensor: Tensor) -> int:
    part = local(tensor)
    return part.numel() * part.element_size()
