"""Label every number of a module's parameters with its own index, so that it is recognised in any operation."""

from __future__ import annotations

import bisect
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class LabelledParameters:
    """A module's parameters, and one index over the numbers of all of them."""

    module: nn.Module
    names: list[str] = field(init=False)
    shapes: dict[str, tuple[int, ...]] = field(init=False)
    starts: list[int] = field(init=False)  # the index of each parameter's first number
    total: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.names, self.shapes, self.starts = [], {}, []
        for name, parameter in self.module.named_parameters():
            self.names.append(name)
            self.shapes[name] = tuple(parameter.shape)
            self.starts.append(self.total)
            self.total += parameter.numel()

    def label(self) -> None:
        """Fill every parameter with the index of each of its numbers, scaled to below one."""
        with torch.no_grad():
            for start, parameter in zip(self.starts, self.module.parameters(), strict=True):
                count = torch.arange(start + 1, start + 1 + parameter.numel(), dtype=torch.float64)
                parameter.copy_((count * self.unit).view(parameter.shape))

    def fill(self, numbers: Tensor) -> None:
        """Copy `numbers` (total,) into the parameters, in place."""
        with torch.no_grad():
            for start, parameter in zip(self.starts, self.module.parameters(), strict=True):
                parameter.copy_(numbers[start : start + parameter.numel()].view(parameter.shape))

    @property
    def unit(self) -> float:
        """The scale of a label: a power of two, so that no index is rounded (in float32, up to 2^24 of them)."""
        return 2.0 ** -max(20, self.total.bit_length())

    def entries(self, tensor: Tensor) -> Tensor:
        """Return the indices that the labels in `tensor` stand for."""
        return (tensor.detach().double() / self.unit).round().long() - 1

    def numel_of(self, entry: int) -> int:
        """Return the number of elements of the parameter that the index belongs to."""
        at = bisect.bisect_right(self.starts, entry) - 1
        return [*self.starts[1:], self.total][at] - self.starts[at]

    def name_of(self, entry: int) -> str:
        """Return the name of the parameter that the index belongs to."""
        return self.names[bisect.bisect_right(self.starts, entry) - 1]
