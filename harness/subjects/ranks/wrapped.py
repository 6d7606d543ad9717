"""A model on a rank: wrapped by the program's own function, and this rank's parts of its parameters."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from harness.core.rank_processes import Place
from harness.subjects.forward_style import remember, style_of
from harness.subjects.model import Model
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import DATA, NAMES, TENSOR, ParallelProgram, RankFunction

COMPUTES = ("gradients", "clip")


@dataclass
class RankModel:
    """A wrapped model on one rank. `model` is called as the unwrapped one is."""

    model: Model
    program: ParallelProgram
    kind: str
    place: Place
    values: dict[str, Any]  # what the program's functions may take

    @property
    def module(self) -> nn.Module:
        """The wrapped module."""
        return self.model.module

    def rows(self, batch: Tensor) -> Tensor:
        """Return what this rank computes of a global batch, (B, ...)."""
        return batch if self.kind == TENSOR else batch.chunk(self.place.ranks)[self.place.rank]

    def call(self, role: str, **values: Any) -> Any:
        """Call the program's function for a role; one that computes, in the precision of the model."""
        with self.model.precision() if role in COMPUTES else contextlib.nullcontext():
            return self.program.function(role)({**self.values, **values})

    def average(self) -> None:
        """Average the gradients after a backward pass, if the program does so by a call of its own.

        It is a method of the wrapped module, or else a function for replicas, which one of torch's has no need of.
        """
        methods = (getattr(self.module, name, None) for name in NAMES["average"])
        function = next((RankFunction.of(method) for method in methods if inspect.ismethod(method)), None)
        if function is None and self.kind == DATA and not isinstance(self.module, DistributedDataParallel):
            function = self.program.functions.get("average")
        if function is not None:
            function(self.values)


def wrapped(subject: Parallelizes, kind: str, place: Place, model: Model) -> RankModel:
    """Wrap a model by the program's own function for the kind. The rank's data rank is 0 for tensor parallel ranks."""
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    program = subject.parallel_program
    style = style_of(model.module)
    values: dict[str, Any] = {
        "model": model.module,
        "mesh": init_device_mesh("cpu", (place.ranks,)),
        "rank": place.rank,
        "ranks": place.ranks,
        "data rank": 0 if kind == TENSOR else place.rank,
        "group": dist.group.WORLD,
        "device": torch.device("cpu"),
    }
    with model.precision():
        answer = program.function(kind)(values)
    module = answer if isinstance(answer, nn.Module) else model.module
    if type(module) is not type(model.module):
        remember(module, style)  # in this process alone: a wrapper passes its arguments on
    rank = RankModel(dataclasses.replace(model, module=module), program, kind, place, values)
    rank.values["model"] = module
    return rank


def local(tensor: Tensor, like: Tensor | None = None) -> Tensor:
    """Return what this rank has of a tensor; of a gradient, once it is placed as its parameter `like` is."""
    from torch.distributed.tensor import DTensor

    if not isinstance(tensor, DTensor):
        return tensor.detach()
    if isinstance(like, DTensor) and tensor.placements != like.placements:
        tensor = tensor.redistribute(placements=like.placements)
    return tensor.to_local().detach()


def parts(module: nn.Module) -> list[Tensor]:
    """Return a copy of this rank's part of every parameter."""
    return [local(parameter).clone() for parameter in module.parameters()]


def gradient_parts(module: nn.Module) -> list[Tensor]:
    """Return a copy of this rank's part of every gradient; zeros for a parameter without one."""
    return [
        torch.zeros_like(local(parameter)) if parameter.grad is None else local(parameter.grad, parameter).clone()
        for parameter in module.parameters()
    ]
