"""Gradient checkpointing: a block's intermediate results are computed again in the backward pass, not stored."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from gpt.network import Block, Network


def recompute_blocks(model: Network) -> None:
    """Let each block of `model` store only its input for the backward pass; weights and their names are unchanged.

    A forward pass is computed once more for about a third more work. Dropout is drawn again from the same state, so
    gradients are the same. A layer of experts then appends its routing once more: read them before the backward pass.
    """
    for block in model.blocks:
        # A partial of a bound method, not a closure: copy.deepcopy then binds the copy's block.
        block.forward = partial(_recomputed, block, block.forward)  # type: ignore[method-assign]


def _recomputed(block: Block, forward: Callable[..., Tensor], *inputs: object) -> Tensor:
    if not (block.training and torch.is_grad_enabled()):  # nothing is stored without a backward pass
        return forward(*inputs)
    out: Tensor = checkpoint(forward, *inputs, use_reentrant=False)
    return out
