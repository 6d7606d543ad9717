"""AdamW, with weight decay on matrices and none on vectors."""

from typing import Any

import torch
from torch import nn

from gpt.training.config import TrainConfig

FUSED = ("cpu", "cuda")
"""The devices that have AdamW as one kernel (torch 2.4 and later); elsewhere it runs over lists of tensors."""


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return the optimizer's groups: matrices, which decay, and vectors (biases and gains), which do not.

    Every trainable parameter is in one group, once. A tied head is the embedding: one parameter, a matrix.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]  # a shared one comes once
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.dim() >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def adamw(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) over `decay_groups`, at the peak learning rate of `config`.

    Every update is p <- p (1 - lr λ) - lr m̂ / (√v̂ + ε), with bias-corrected moments m̂ and v̂ of the gradient.
    """
    device = next(model.parameters()).device.type
    return torch.optim.AdamW(
        decay_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        **({"fused": True} if device in FUSED else {"foreach": True}),
    )
