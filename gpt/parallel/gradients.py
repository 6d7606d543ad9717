"""Gradients over several ranks and micro-batches: their mean over all targets, and their global norm."""

import contextlib
import math
from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Replicate
from torch.nn.parallel import DistributedDataParallel

from gpt.errors import ParallelError
from gpt.parallel.data import require_ranks
from gpt.token_ids import IGNORED
from gpt.training.clipping import EPSILON


def accumulate_gradients(model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Leave the gradient of the mean loss over all targets of the step in the parameters; return that loss.

    `batches` are this rank's micro-batches, ids and targets (B, T). Ranks and micro-batches may have different numbers
    of targets: each target counts once, so a micro-batch counts by its targets. Gradients are sent once, with the last
    micro-batch. Under tensor parallelism all ranks have the same batches, and nothing is averaged.

    Raises `ParallelError` without a process group, or if no micro-batch of any rank has a target.
    """
    require_ranks()
    averaged = isinstance(model, (DistributedDataParallel, FSDPModule))
    ranks = dist.get_world_size() if averaged else 1
    device = next(model.parameters()).device
    counts = [int((targets != IGNORED).sum()) for _, targets in batches]
    total = torch.tensor(sum(counts), device=device)
    if averaged:
        dist.all_reduce(total)
    if not total:
        raise ParallelError(
            f"the {len(batches)} micro-batches of each rank have no target: all are {IGNORED}, which is none; the mean "
            "over no targets does not exist, so skip this step on all ranks"
        )
    mean = torch.zeros((), dtype=torch.float64, device=device)
    for number, ((ids, targets), count) in enumerate(zip(batches, counts, strict=True)):
        with _sent_with_the_last(model, is_last=number == len(batches) - 1):
            # The ranks' gradients are averaged: times n it is their sum. A mean over no targets is 0 / 0: the sum is 0.
            loss = model(ids, targets)[1] if count else model(ids)[0].sum() * 0
            share = loss * (max(count, 1) / int(total))
            (share * ranks).backward()
        mean += share.detach() if count else 0
    if averaged:
        dist.all_reduce(mean)
    return float(mean)


@contextlib.contextmanager
def _sent_with_the_last(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Have the backward pass inside the block send gradients only if it is the last of the step."""
    if isinstance(model, DistributedDataParallel):
        with contextlib.nullcontext() if is_last else model.no_sync():
            yield
        return
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
    yield


@torch.no_grad()
def clip_gradients(model: nn.Module, limit: float) -> float:
    """Multiply all gradients by min(1, limit / (norm + 1e-6)) and return their global norm before that.

    The norm is that of the whole gradient: squares of parts are summed over the ranks that have the parts, a gradient
    that every rank has counts once. A limit of 0 clips nothing.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    parts = [gradient for gradient in gradients if _is_part(gradient)]
    device = next(model.parameters()).device
    square = _square(parts, device)
    if parts:
        dist.all_reduce(square, group=parts[0].device_mesh.get_group())  # type: ignore[attr-defined]  # a DTensor
    square += _square([each for each in gradients if not _is_part(each)], device)
    norm = math.sqrt(float(square))
    if 0 < limit < norm + EPSILON and math.isfinite(norm):
        for gradient in gradients:
            gradient.mul_(limit / (norm + EPSILON))
    return norm


def _is_part(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor) and not all(isinstance(each, Replicate) for each in tensor.placements)


def _square(gradients: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return the sum of the squares of what this rank has of the gradients, in float64 on their device."""
    local = [gradient.to_local() if isinstance(gradient, DTensor) else gradient for gradient in gradients]
    return sum((each.double().square().sum() for each in local), torch.zeros((), dtype=torch.float64, device=device))
