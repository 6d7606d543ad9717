"""Weights in eight bits: the linear layers of any model with int8 weights and a scale for each output channel."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility

LARGEST = 127.0


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int8 weight (out, in) and the scales (out): the largest weight of each output channel is 127."""
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / LARGEST
    return (weight / scales[:, None]).round().to(torch.int8), scales


def rounded_to_int8(weight: Tensor) -> Tensor:
    """Return what an int8 weight (out, in) stands for, in the weight's own type."""
    whole, scales = quantise(weight)
    return whole.to(weight.dtype) * scales[:, None]


class Int8Linear(nn.Module):
    """x Wᵀ + b, where W is stored in int8 and multiplied as it is read: half the bytes of 16 bits."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = quantise(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = torch._weight_int8pack_mm(x.reshape(-1, x.size(-1)), self.weight, self.scales)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def round_linears_to_int8(module: nn.Module) -> None:
    """Round the weights of a model's linear layers to what int8 stands for, and keep their type.

    Hugging Face's Conv1D has its weight as (in, out): its output channels are columns.
    """
    from transformers.pytorch_utils import Conv1D  # takes seconds to import

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight.copy_(rounded_to_int8(part.weight))
            elif isinstance(part, Conv1D):
                part.weight.copy_(rounded_to_int8(part.weight.t()).t())


def quantise_linears(module: nn.Module, name: str) -> None:
    """Replace each `nn.Linear` of a model by one with int8 weights. The embedding of a tied head stays as it is.

    Raises MissingAbility if the model `name` has none: it multiplies by its parameters in another way.
    """
    found = [(parent, key, child) for parent in module.modules() for key, child in parent.named_children()]
    linears = [(parent, key, child) for parent, key, child in found if isinstance(child, nn.Linear)]
    if not linears:
        raise MissingAbility(f"{name} has no nn.Linear whose weight could be stored in int8")
    for parent, key, linear in linears:
        setattr(parent, key, Int8Linear(linear))
