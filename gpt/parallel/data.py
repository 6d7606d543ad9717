"""Data parallel: every rank has the whole model and a part of the batch; gradients are averaged (Li et al. 2020)."""

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from gpt.errors import ParallelError
from gpt.network import Network


def data_parallel(model: Network) -> DistributedDataParallel:
    """Return the model in `DistributedDataParallel`: rank 0's weights on all ranks, and averaged gradients.

    The average over ranks is summed in buckets while the backward pass still computes earlier layers. A ring sends
    2 (n-1)/n of the gradient from each of n ranks. A tied head has one gradient, the sum of its two uses, sent once.

    Raises `ParallelError` without a process group.
    """
    require_ranks()
    device = model.lm_head.weight.device
    return DistributedDataParallel(
        model,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,  # one copy of the gradients, not two
    )


def require_ranks() -> None:
    """Raise `ParallelError` unless this process is one of a group of ranks."""
    if not (dist.is_available() and dist.is_initialized()):
        raise ParallelError(
            "there is no process group; start with `torchrun --nproc-per-node N` and call "
            "torch.distributed.init_process_group first"
        )
