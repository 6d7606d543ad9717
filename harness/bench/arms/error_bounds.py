"""The relative error of an answer, and by how much a correct float32 program may be off."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.sizes import Size

_ROWS = 128  # compared at a time, because a float64 copy of all logits would be large


def relative_error(answer: Tensor, expected: Tensor) -> float:
    """Return |answer - expected| / |expected|, root mean square over all values; infinity if the shapes differ."""
    if answer.shape != expected.shape:
        return math.inf
    difference = scale = 0.0
    a, b = answer.detach().flatten(0, -2), expected.flatten(0, -2)
    for found, right in zip(torch.split(a, _ROWS), torch.split(b, _ROWS), strict=True):
        difference += float((found.double() - right).square().sum())
        scale += float(right.square().sum())
    return math.sqrt(difference / scale) if scale else math.inf


def float32_bound(size: Size) -> float:
    """Return the relative error that float32 allows for logits: u * sqrt(K/6) for each product, added in squares.

    A sum of K random terms that is rounded at every step is off by u*sqrt(K/6), u = 2^-24. K is the longest sum, 4C.
    A model has four such products a block, and the head. Kernels sum in lanes and stay well below.
    """
    return float(2.0**-24 * math.sqrt(4 * size.width / 6) * math.sqrt(4 * size.layers + 1))


def training_bound(size: Size) -> float:
    """Return the relative error that float32 allows for logits after a step of AdamW.

    AdamW divides each gradient by its own size: a gradient near zero has its sign from rounding, and still moves its
    weight by the full learning rate. Measured at 124M: 5.7e-6 with a step, 7.9e-7 without. Ten times the bound of a
    forward pass is allowed.
    """
    return 10 * float32_bound(size)


def attention_bound(tokens: int) -> float:
    """Return the relative error that float32 allows for attention alone: two products, the longest sum over tokens."""
    return float(2.0**-24 * math.sqrt(max(tokens, 64) / 6) * math.sqrt(2))
