"""Read float32 as float64, so that a deliberate `.float()` in a float64 run is not mistaken for a bug."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

MAY_NAME_FLOAT32 = frozenset((torch.dtype, str))


class Float32AsFloat64(TorchFunctionMode):
    """Replace requests for float32 by float64 inside the block.

    Many correct programs compute the softmax, the norms or the loss in float32 for every dtype of the model
    (`scores.float().softmax(-1)`), so that bfloat16 loses nothing there. In a float64 run the same line drops 29 bits,
    and the noise verdict would call it a bug. Requests for 16 bits are unchanged: they lose precision in a float32 run
    too.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = kwargs or {}
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        elif not MAY_NAME_FLOAT32.isdisjoint(map(type, (*args, *options.values()))):
            args = tuple(_wider(value) for value in args)
            options = {key: _wider(value) for key, value in options.items()}
        return function(*args, **options)


def _is_float32(value: Any) -> bool:
    return value is torch.float32 or (isinstance(value, str) and value == "torch.FloatTensor")


def _wider(value: Any) -> Any:
    if not _is_float32(value):
        return value
    return torch.float64 if isinstance(value, torch.dtype) else "torch.DoubleTensor"


@contextlib.contextmanager
def in_float64_throughout(module: nn.Module) -> Iterator[None]:
    """Make a float64 module's intermediate tensors float64 too, such as `torch.tensor(0.79...)` or `x.float()`.

    Nothing changes for a module in another type.
    """
    before = torch.get_default_dtype()
    if next(module.parameters()).dtype != torch.float64:
        yield
        return
    torch.set_default_dtype(torch.float64)
    try:
        with Float32AsFloat64():
            yield
    finally:
        torch.set_default_dtype(before)
