"""Checkpoints of sharded runs: every rank writes its parts, and any number of ranks reads them."""

import json
import os
import secrets
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

    What every rank has is written by rank 0 alone. The folder is complete when all ranks have returned. If a rank ends
    before all have written, the folder still has what was saved before; if one ends while the files are renamed, the
    folder has files of two saves, and `load_checkpoint` refuses them. Files of other numbers of ranks are removed.
    """
    require_ranks()
    rank, ranks = dist.get_rank(), dist.get_world_size()
    Path(folder).mkdir(parents=True, exist_ok=True)
    number = _number_of_save(next(model.parameters()).device)
    tensors, parts = {}, {}
    for name, tensor in _tensors(model, optimizer):
        part = Part.of(tensor)
        if part.axis >= 0 or rank == 0:
            tensors[name] = _local(tensor).contiguous()
            parts[name] = [part.axis, part.start, part.length, part.shape]
    path = _file(folder, rank, ranks)
    written = path.with_name(f"{path.name}.part")
    save_file(tensors, written, metadata={"parts": json.dumps(parts), "save": number})
    dist.barrier()  # no file is replaced before all are written
    written.replace(path)
    dist.barrier()
    if rank == 0:
        own = {_file(folder, each, ranks) for each in range(ranks)}
        for other in set(Path(folder).glob("rank-*-of-*.safetensors*")) - own:
            other.unlink()
    dist.barrier()


@torch.no_grad()
def load_checkpoint(model: nn.Module, optimizer: torch.optim.Optimizer, folder: str | os.PathLike[str]) -> None:
    """Read a folder that `save_checkpoint` wrote, on any number of ranks, into a model wrapped in the same way.

    Each rank reads what overlaps its own parts. The optimizer gets the state of the step at which it was saved.

    Raises `WeightsError` if a file or a tensor is missing or of another shape, or if the files are of different saves.
    """
    require_ranks()
    files = _files_of_one_save(folder)
    saved = {name for parts in files.values() for name in parts}
    _allocate_state(model, optimizer, saved)
    wanted = dict(_tensors(model, optimizer))
    filled = dict.fromkeys(wanted, 0)
    for path, parts in files.items():
        with safe_open(path, "pt") as file:
            for name in parts.keys() & wanted.keys():
                axis, start, length, shape = parts[name]
                source = file.get_slice(name)
                filled[name] += _copy_overlap(name, wanted[name], source, axis, start, length, tuple(shape))
    missing = [name for name, count in filled.items() if count < _local(wanted[name]).numel()]
    if missing:
        raise WeightsError(f"{folder} lacks {missing[0]}, or a part of it; expected the checkpoint of the same model")


def _number_of_save(device: torch.device) -> str:
    """Return a random number that all ranks have: torch's generators, which a run must find unchanged, are not used."""
    number = torch.tensor(secrets.randbits(63), device=device)
    dist.broadcast(number, src=0)
    return str(int(number))


def _files_of_one_save(folder: str | os.PathLike[str]) -> dict[Path, dict[str, Any]]:
    """Return the parts that each rank's file has. Raises `WeightsError` if one is missing, or is of another save."""
    files = sorted(Path(folder).glob("rank-*-of-*.safetensors"))
    expected = int(files[0].stem.rpartition("-")[2]) if files else 1
    if len(files) < expected:
        raise WeightsError(f"{folder} has {len(files)} files of ranks; expected {expected}, each from one rank")
    parts, saves = {}, {}
    for path in files:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        parts[path], saves[path.name] = json.loads(metadata["parts"]), metadata.get("save")
    first, *others = saves
    if other := next((name for name in others if saves[name] != saves[first]), None):
        raise WeightsError(
            f"{folder} has files of two saves, as when a run ends while it saves: {first} and {other} are not of the "
            "same one; load an earlier checkpoint"
        )
    return parts


def _tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, Tensor]]:
    """Yield each tensor that a checkpoint has, by a name that does not depend on the number of ranks."""
    for name, parameter in _parameters(model):
        yield f"model.{name}", parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{key}.{name}", value


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        yield name.removeprefix("module."), parameter  # DistributedDataParallel contains the model as `module`


def _allocate_state(model: nn.Module, optimizer: torch.optim.Optimizer, saved: set[str]) -> None:
    """Have the optimizer allocate its moments, by a step at rate 0 with gradients of 0.

    A parameter has none before its first gradient: the optimizer then has none after loading either.
    """
    with_state = {name.split(".", 2)[2] for name in saved if name.startswith("optimizer.")}
    optimizer.zero_grad(set_to_none=True)
    for name, parameter in _parameters(model):
        optimizer.state.pop(parameter, None)
        if name in with_state:
            parameter.grad = torch.zeros_like(parameter)
    rates = [group["lr"] for group in optimizer.param_groups]
    for group in optimizer.param_groups:
        group["lr"] = 0.0
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
