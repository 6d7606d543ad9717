"""Linear layers whose weights are stored in another form: packed by oneDNN, in eight bits, in four.

A decoding step reads every weight once and computes little with it, so that the form decides its time.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from harness.core.errors import MissingAbility

# Steps to the largest weight of an output channel on either side of 0, and between the ends of a group.
INT8_STEPS, INT4_STEPS = 127.0, 15.0
INT4_MIDDLE = 8  # of the whole numbers from 0 to 15, the one that stands for a group's zero point
GROUP = 32  # input channels that have a scale and a zero point in common, for each output channel
OUTPUTS = 16  # output channels that the kernel of int4 computes together


class PackedLinear(nn.Module):
    """x Wᵀ + b, where W is stored in the order in which oneDNN's kernel reads it; the numbers are the same.

    torch multiplies a row by a plain weight on one thread. It packs a weight by itself only in graphs that it compiles
    with constant weights.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # Not buffers: a packed tensor is opaque, and a state dict could neither write nor load it.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach().contiguous(), 1)
        self.bias = None if linear.bias is None else linear.bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


class Int8Linear(nn.Module):
    """x Wᵀ + b, where W is stored in int8 with a scale for each output channel, and multiplied as it is read."""

    weight: Tensor
    scales: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight, scales = to_int8(linear.weight.detach().float())
        self.register_buffer("weight", weight)
        self.register_buffer("scales", scales.to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = torch._weight_int8pack_mm(x.reshape(-1, x.size(-1)), self.weight, self.scales)
        y = y.view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


class Int4Linear(nn.Module):
    """x Wᵀ + b, where W is stored in int4 with a scale and a zero point for each GROUP of an output channel."""

    weight: Tensor
    scales_and_zeros: Tensor
    bias: Tensor | None

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        # The kernel takes whole groups of input channels, and output channels by the sixteen.
        self.unused = -linear.in_features % GROUP
        self.out = linear.out_features
        weight = F.pad(linear.weight.detach().float(), (0, 0, 0, -self.out % OUTPUTS))
        whole, scales, zeros = to_int4(weight)
        together = torch.stack([scales, zeros], dim=-1).transpose(0, 1)  # (in / GROUP, out, 2)
        self.register_buffer("weight", torch._convert_weight_to_int4pack_for_cpu(whole, 1))
        self.register_buffer("scales_and_zeros", together.contiguous().to(linear.weight.dtype))
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        rows = x.reshape(-1, x.size(-1))
        if self.unused:
            rows = F.pad(rows, (0, self.unused))
        y = torch._weight_int4pack_mm_for_cpu(rows, self.weight, GROUP, self.scales_and_zeros)
        y = y[:, : self.out].view(*x.shape[:-1], -1)
        return y if self.bias is None else y + self.bias


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return the int8 weight (out, in) and the scales (out): the largest weight of each output channel is 127."""
    scales = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny) / INT8_STEPS
    return (weight / scales[:, None]).round().to(torch.int8), scales


def to_int4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the weight (out, in) as 0 to 15, and scales and zero points (out, in / GROUP).

    A group's smallest weight is 0 and its largest 15; `zero point + (whole - 8) scale` is what they stand for. Input
    channels of zeros are added until the groups are whole.
    """
    groups = F.pad(weight, (0, -weight.size(1) % GROUP)).unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1), groups.amax(-1)
    scales = ((high - low) / INT4_STEPS).clamp(min=torch.finfo(weight.dtype).tiny)
    whole = ((groups - low[..., None]) / scales[..., None]).round().clamp(0, INT4_STEPS)
    return whole.flatten(1).to(torch.int32), scales, low + INT4_MIDDLE * scales


def rounded_to_int8(weight: Tensor) -> Tensor:
    """Return what an int8 weight (out, in) stands for, in the weight's own type."""
    whole, scales = to_int8(weight)
    return whole.to(weight.dtype) * scales[:, None]


def rounded_to_int4(weight: Tensor) -> Tensor:
    """Return what an int4 weight (out, in) stands for, in the weight's own type."""
    whole, scales, zeros = to_int4(weight)
    groups: Tensor = (whole.to(weight.dtype) - INT4_MIDDLE).unflatten(1, (-1, GROUP))
    return (groups * scales[..., None] + zeros[..., None]).flatten(1)[:, : weight.size(1)]


FORMS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "packed": PackedLinear,
    "int8": Int8Linear,
    "int4": Int4Linear,
}
ROUNDED: dict[str, Callable[[Tensor], Tensor]] = {"int8": rounded_to_int8, "int4": rounded_to_int4}
# A weight's share of int4's scales and zero points, in 16 bits each, is read with it.
BYTES = {"int8": 1.0, "int4": 0.5 + 4 / GROUP}


def round_linears(module: nn.Module, form: str) -> None:
    """Round the weights of a model's linear layers to what the form stands for, and keep their type.

    A head that is tied gets a weight of its own: the embedding stays as it is, as it does in `store_linears`.
    Hugging Face's Conv1D has its weight as (in, out): its output channels are columns.
    """
    from transformers.pytorch_utils import Conv1D  # takes seconds to import

    rounded = ROUNDED[form]
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Linear):
                part.weight = nn.Parameter(rounded(part.weight))
            elif isinstance(part, Conv1D):
                part.weight = nn.Parameter(rounded(part.weight.t()).t().contiguous())


def store_linears(module: nn.Module, form: str, name: str) -> None:
    """Replace each `nn.Linear` of a model by one that stores its weight so. The embedding of a tied head stays.

    Raises MissingAbility if the model `name` has none: it multiplies by its parameters in another way.
    """
    found = [(parent, key, child) for parent in module.modules() for key, child in parent.named_children()]
    linears = [(parent, key, child) for parent, key, child in found if isinstance(child, nn.Linear)]
    if not linears:
        raise MissingAbility(f"{name} has no nn.Linear whose weight could be stored as {form}")
    for parent, key, linear in linears:
        setattr(parent, key, FORMS[form](linear))
