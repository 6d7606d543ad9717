"""Ranks: the processes of one run, each with its part of every batch. One process alone is the case of size 1.

Gradients are summed explicitly, in buckets, after the backward pass: what `DistributedDataParallel` does while it runs.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from gpt.errors import ConfigError

BUCKET_ELEMENTS = 6_553_600
"""The gradients that are summed in one message: 25 MiB of float32, as in `DistributedDataParallel`."""

TORCHRUN = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells each process, beside WORLD_SIZE."""


@dataclass(frozen=True)
class Ranks:
    """This process among the `size` processes of a run.

    All methods are collective: every rank calls them in the same order, and has the same result.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    """The device of this rank."""

    def sum(self, tensor: Tensor) -> Tensor:
        """Replace `tensor` by its sum over all ranks, in place, and return it."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Replace the gradient of each parameter by its sum over all ranks; a missing one counts as zeros."""
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:  # this rank had no targets
                parameter.grad = torch.zeros_like(parameter)
        for bucket in _buckets([parameter.grad for parameter in parameters if parameter.grad is not None]):
            # At least float32: a sum of many ranks in bfloat16 would be rounded once for each of them.
            exact = torch.promote_types(bucket[0].dtype, torch.float32)
            flat = self.sum(torch.cat([gradient.flatten().to(exact) for gradient in bucket]))
            for gradient, part in zip(
                bucket, torch.split(flat, [gradient.numel() for gradient in bucket]), strict=True
            ):
                gradient.copy_(part.view_as(gradient))

    def any(self, flag: bool) -> bool:
        """Return True if the flag is set on any rank."""
        return bool(self.sum(torch.tensor(int(flag), device=self.device)))

    def gather(self, text: str) -> list[str]:
        """Return the text of each rank, in the order of the ranks."""
        if self.size == 1:
            return [text]
        raw = torch.tensor(list(text.encode()), dtype=torch.uint8, device=self.device)
        lengths = torch.zeros(self.size, dtype=torch.int64, device=self.device)
        lengths[self.rank] = len(raw)
        longest = int(self.sum(lengths).max())
        table = torch.zeros(self.size, longest, dtype=torch.uint8, device=self.device)  # a row for each rank
        table[self.rank, : len(raw)] = raw
        rows = zip(self.sum(table).tolist(), lengths.tolist(), strict=True)
        return [bytes(row[:length]).decode() for row, length in rows]


def _buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in order, in groups of one type and of at most `BUCKET_ELEMENTS` where there are several."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        full = sum(member.numel() for member in bucket) + gradient.numel() > BUCKET_ELEMENTS
        if bucket and (full or gradient.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket


@contextmanager
def join(device: str = "auto") -> Iterator[Ranks]:
    """Join the ranks that torchrun started, and leave them afterwards; without torchrun, be the only rank.

    The ranks talk through gloo on CPUs and through NCCL on CUDA devices, where each has the device of its LOCAL_RANK.

    Raises `ConfigError` for a device that is not there, or for an environment that torchrun would not make.
    """
    size = _integer("WORLD_SIZE") if "WORLD_SIZE" in os.environ else 1
    if size == 1:
        yield Ranks(device=choose_device(device, 0))
        return
    missing = [name for name in TORCHRUN if name not in os.environ]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE is {size}, and {', '.join(missing)} is not set; start the ranks with "
            f"torchrun --nproc-per-node {size} -m gpt.train, or unset WORLD_SIZE"
        )
    chosen = choose_device(device, _integer("LOCAL_RANK"))
    dist.init_process_group(
        "nccl" if chosen.type == "cuda" else "gloo", device_id=chosen if chosen.type == "cuda" else None
    )
    try:
        yield Ranks(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """Return the device of a name, "auto" for CUDA where there is one; ranks on CUDA have one device each.

    Raises `ConfigError` if it is not there.
    """
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        name = "cuda" if available else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name!r} is unknown; choose 'cpu', 'cuda' or 'auto'") from error
    if device.type != "cuda":
        return device
    index = local_rank if device.index is None else device.index
    if index >= available:
        raise ConfigError(
            f"device={name!r} for local rank {local_rank} needs CUDA device {index}, and there are {available}; "
            "start fewer ranks, or choose device='cpu'"
        )
    return torch.device("cuda", index)


def _integer(name: str) -> int:
    try:
        return int(os.environ[name])
    except ValueError:
        raise ConfigError(f"{name}={os.environ[name]!r} is not a number; torchrun sets it to one") from None
