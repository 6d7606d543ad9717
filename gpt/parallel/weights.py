"""The weights of a model on several ranks as those of one model."""

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from gpt.parallel.tensor import FusedByHeads


@torch.no_grad()
def full_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the weights under the names and shapes of one process's `state_dict`, the same on every rank.

    A collective: every rank calls it. The parts of a parameter are gathered, one parameter after the other, and a rank
    needs the memory of the whole model.
    """
    by_heads = {name for name, module in model.named_modules() if isinstance(module, FusedByHeads)}
    whole: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if name.rpartition(".")[0] in by_heads:
            full = full.flatten(0, 1)  # (3, C, C) -> (3C, C)
        whole[name.removeprefix("module.")] = full.detach()  # DistributedDataParallel contains the model as `module`
    return whole
