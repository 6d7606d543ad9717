"""Fully sharded: every rank stores a part of each parameter, and gathers a layer to compute it (FSDP2, ZeRO-3)."""

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard

from gpt.network import Network
from gpt.parallel.data import require_ranks


def fully_sharded(model: Network, mesh: DeviceMesh) -> Network:
    """Shard the parameters of `model` over the ranks of a one-dimensional mesh, in place, and return it.

    Every parameter becomes a DTensor whose rows are distributed, with its gradient and the optimizer's moments. A block
    is gathered for its forward pass and again for its backward pass, and its gradients are averaged and scattered:
    ZeRO stage 3 (Rajbhandari et al. 2020). The embeddings, the last norm and the head are one group, the root's: in it
    the tied head stays the token embedding. The weights are those of rank 0.

    Raises `ParallelError` without a process group.
    """
    require_ranks()
    broadcast_weights(model, mesh)
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


@torch.no_grad()
def broadcast_weights(model: torch.nn.Module, mesh: DeviceMesh) -> None:
    """Give every rank of the mesh the weights of its first, as `DistributedDataParallel` does; sharding does not."""
    group = mesh.get_group()
    for parameter in model.parameters():
        dist.broadcast(parameter, src=dist.get_global_rank(group, 0), group=group)
