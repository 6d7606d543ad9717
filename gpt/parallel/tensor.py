"""Tensor parallel: every rank computes its heads and its hidden channels of each layer (Megatron, Shoeybi et al. 2019).

The two matrices of a branch are split so that only their result needs a sum over the ranks: the first by output
channels, the second by input channels. A block sends two sums of (B, T, C) forward and two backward.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

from gpt.attention import CausalSelfAttention
from gpt.errors import ParallelError
from gpt.network import Network
from gpt.parallel.data import require_ranks
from gpt.parallel.sharded import broadcast_weights
from gpt.training.randomness import derived_seed


def tensor_parallel(model: Network, mesh: DeviceMesh) -> Network:
    """Split the attention and the feed-forward network of each block over the ranks of a mesh, in place; return it.

    All ranks compute the same batch and have the same logits and loss. Embeddings, norms and the head are whole on each
    rank, and so is the tie; their gradients need no sum, because the residual stream is the same everywhere. The biases
    of both c_proj are added once, after the sum. The weights are those of rank 0. The heads of each rank have dropout
    masks of their own, whatever the ranks' seed is.

    Raises `ParallelError` without a process group, for a number of heads that the ranks cannot share, or for the looped
    form of attention, whose heads are modules of their own.
    """
    require_ranks()
    ranks, config = mesh.size(), model.config
    if config.n_head % ranks:
        raise ParallelError(
            f"{config.n_head} heads cannot be shared by {ranks} ranks; give a divisor of {config.n_head}"
        )
    if config.attention == "looped":
        raise ParallelError(
            "attention='looped' has a module for each head; choose 'naive' or 'flash' for tensor parallel"
        )
    broadcast_weights(model, mesh)
    for block in model.blocks:
        assert isinstance(block.attn, CausalSelfAttention)
        block.attn.c_attn = FusedByHeads(block.attn.c_attn, mesh)  # type: ignore[assignment]  # of the same call
        block.attn.n_head = config.n_head // ranks  # its own heads
        _drop_with_own_masks(block.attn, mesh.get_local_rank())
        plan: dict[str, ParallelStyle] = {
            "attn.c_proj": RowwiseParallel(),
            "mlp.c_fc": ColwiseParallel(),
            "mlp.c_proj": RowwiseParallel(),
        }
        parallelize_module(block, mesh, plan)
    return model


def _drop_with_own_masks(attention: CausalSelfAttention, rank: int) -> None:
    """Give the heads of a rank their own dropout masks.

    Outside of the split layers all ranks must draw the same numbers, so they are seeded equally. With these the first
    head of each rank would have one mask, the second another: n heads would share each. Megatron-LM has a second stream
    of random numbers for each rank (core/tensor_parallel/random.py). Here it is seeded by one number of the common one.
    """
    name = "attend_flash" if attention.flash else "attend_naive"
    attend = getattr(attention, name)

    def attend_with_own_masks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H / n, T, D), 2 × (B, H / n, S, D) -> (B, H / n, T, D)."""
        if not attention.training or attention.attn_dropout.p == 0:
            return attend(q, k, v)  # type: ignore[no-any-return]  # a method of the attention
        seed = int(torch.randint(2**62, ()))
        with torch.random.fork_rng([q.device] if q.device.type == "cuda" else []):
            torch.manual_seed(derived_seed(seed, "heads", rank))
            return attend(q, k, v)  # type: ignore[no-any-return]

    setattr(attention, name, attend_with_own_masks)


class FusedByHeads(nn.Module):
    """The fused projection of some heads: its weight is (3, C, C), queries, keys and values, sharded by their rows.

    Of the published (3C, C), a plain split by rows would give the first of two ranks all queries and half of the keys.
    In (3, C, C) a part of axis 1 is a part of the heads, with the queries, the keys and the values of each.
    """

    weight: DTensor
    bias: DTensor | None

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        by_heads = [Shard(1)]  # of (3, H D, C) and (3, H D)
        weight = linear.weight.detach().view(3, -1, linear.in_features)  # (3C, C) -> (3, C, C)
        self.weight = nn.Parameter(distribute_tensor(weight, mesh, by_heads))  # type: ignore[assignment]  # a Parameter
        self.bias = None
        if linear.bias is not None:
            bias = linear.bias.detach().view(3, -1)  # (3C) -> (3, C)
            self.bias = nn.Parameter(distribute_tensor(bias, mesh, by_heads))  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, 3C / n): queries, keys and values of this rank's heads."""
        # The gradient of x is a sum over the heads, so over the ranks: a DTensor, replicated, has it summed.
        x = DTensor.from_local(x, self.weight.device_mesh, [Replicate()]).to_local(grad_placements=[Partial()])
        weight = self.weight.to_local().flatten(0, 1)  # (3, C / n, C) -> (3C / n, C)
        return F.linear(x, weight, None if self.bias is None else self.bias.to_local().flatten())
