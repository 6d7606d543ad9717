"""Checkpoints of sharded runs: every rank writes its parts, and any number of ranks reads them."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Shard

from gpt.errors import WeightsError
from gpt.parallel.data import require_ranks

# torch.distributed.checkpoint does the same, but reads its list of parts by unpickling, which runs what a file says.


@dataclass(frozen=True)
class Part:
    """The part of a tensor that one rank has: `length` places from `start` along one axis; axis -1 is all of it."""

    axis: int
    start: int
    length: int
    shape: tuple[int, ...]
    """Of the whole tensor."""

    @classmethod
    def of(cls, tensor: Tensor) -> "Part":
        """Return this rank's part of a DTensor on a one-dimensional mesh, or all of a plain tensor."""
        if not isinstance(tensor, DTensor) or not isinstance(tensor.placements[0], Shard):
            return cls(-1, 0, 0, tuple(tensor.shape))
        axis, mesh = tensor.placements[0].dim, tensor.device_mesh
        longest = -(-tensor.shape[axis] // mesh.size())  # as torch.chunk shares
        start = min(longest * mesh.get_local_rank(), tensor.shape[axis])
        return cls(axis, start, tensor.to_local().shape[axis], tuple(tensor.shape))


def save_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str]) -> None:
    """Write the weights and the optimizer's state into `folder`, one file a rank; a collective.

    What every rank has is written by rank 0 alone. The folder is complete when all ranks have returned.
    """
    require_ranks()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    Path(folder).mkdir(parents=True, exist_ok=True)
    tensors, parts = {}, {}
    for name, tensor in _tensors(model, optimizer):
        part = Part.of(tensor)
        if part.axis >= 0 or rank == 0:
            tensors[name] = _local(tensor).contiguous()
            parts[name] = [part.axis, part.start, part.length, part.shape]
    save_file(tensors, _file(folder, rank, ranks), metadata={"parts": json.dumps(parts)})
    dist.barrier()


@torch.no_grad()
def load_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str]) -> None:
    """Read a folder that `save_checkpoint` wrote, on any number of ranks, into a model wrapped in the same way.

    Each rank reads what overlaps its own parts. The optimizer gets the state of the step at which it was saved.

    Raises `WeightsError` if a file or a tensor is missing, or is of another shape.
    """
    require_ranks()
    files = sorted(Path(folder).glob("rank-*-of-*.safetensors"))
    expected = int(files[0].stem.rpartition("-")[2]) if files else 1
    if len(files) != expected:
        raise WeightsError(f"{folder} has {len(files)} files of ranks; expected {expected}, each from one rank")
    _allocate_state(optimizer)
    wanted = dict(_tensors(model, optimizer))
    filled = dict.fromkeys(wanted, 0)
    for path in files:
        with safe_open(path, "pt") as file:
            for name, (axis, start, length, shape) in json.loads(file.metadata()["parts"]).items():
                if name in wanted:
                    source = file.get_slice(name)
                    filled[name] += _copy_overlap(name, wanted[name], source, axis, start, length, tuple(shape))
    missing = [name for name, count in filled.items() if count < _local(wanted[name]).numel()]
    if missing:
        raise WeightsError(f"{folder} lacks {missing[0]}, or a part of it; expected the checkpoint of the same model")


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor that a checkpoint has, by a name that does not depend on the number of ranks."""
    for name, parameter in model.named_parameters():
        name = name.removeprefix("module.")
        yield f"model.{name}", parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", value


def _allocate_state(optimizer: torch.optim.Optimizer) -> None:
    """Have the optimizer allocate its moments, by a step at rate 0 with gradients of 0."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate


def _copy_overlap(
    name: str, tensor: Tensor, source: Any, axis: int, start: int, length: int, shape: tuple[int, ...]
) -> int:
    """Copy what a file's part and this rank's part have in common; return the number of elements."""
    own, local = Part.of(tensor), _local(tensor)
    if own.shape != shape:
        raise WeightsError(f"{name} is of shape {shape} in the checkpoint; expected {own.shape}")
    if axis < 0 and own.axis < 0:
        local.copy_(source[...])
        return local.numel()
    along = max(axis, own.axis)
    if axis < 0:
        start, length = 0, shape[along]
    begin, count = (own.start, own.length) if own.axis >= 0 else (0, shape[along])
    first, last = max(start, begin), min(start + length, begin + count)
    if first >= last:
        return 0
    taken = source[tuple([slice(None)] * along + [slice(first - start, last - start)])]
    local.narrow(along, first - begin, last - first).copy_(taken)
    return int(taken.numel())


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _file(folder: str | os.PathLike[str], rank: int, ranks: int) -> Path:
    return Path(folder, f"rank-{rank}-of-{ranks}.safetensors")
