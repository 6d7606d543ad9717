"""float32 read as float64: so that a deliberate `.float()` inside a float64 run is not taken for a bug."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Float32AsFloat64(TorchFunctionMode):
    """While open, whoever asks PyTorch for float32 gets float64.

    Many right programs compute the softmax, the norms or the loss in float32 whatever the model's own dtype
    (`scores.float().softmax(-1)`), so that bfloat16 loses nothing there. In a float64 run the very same line drops 29
    bits, and the noise verdict would call it a bug. Requests for 16 bits are left alone: those lose in float32 as well.
    """

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        elif any(map(_is_float32, (*args, *given.values()))):
            args = tuple(_wider(value) for value in args)
            given = {key: _wider(value) for key, value in given.items()}
        return function(*args, **given)


def _is_float32(value: Any) -> bool:
    return value is torch.float32 or (isinstance(value, str) and value == "torch.FloatTensor")


def _wider(value: Any) -> Any:
    if not _is_float32(value):
        return value
    return torch.float64 if isinstance(value, torch.dtype) else "torch.DoubleTensor"
