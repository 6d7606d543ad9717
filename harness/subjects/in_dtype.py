"""Conversion of a module to a dtype, without damage to its complex numbers."""

from __future__ import annotations

import torch
from torch import nn


def in_dtype(module: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the module to a real dtype in place, and return it; complex buffers stay complex.

    `Module.to(dtype)` drops the imaginary part of rotary frequencies that are stored as complex numbers, after which
    nothing is rotated.
    """
    complex_dtype = torch.complex128 if dtype == torch.float64 else torch.complex64
    kept = [
        (owner, name, buffer.to(complex_dtype))
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None and buffer.is_complex()
    ]
    for owner, name, _ in kept:
        owner._buffers[name] = None
    module.to(dtype)
    for owner, name, buffer in kept:
        owner._buffers[name] = buffer
    return module
