"""Measures of claims about arithmetic: operations and transfers of simple operations, and the scaling laws."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure


class _Transfers(TorchDispatchMode):
    """Count the elements that the operations inside the block read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.read = self.written = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        self.read += sum(each.numel() for each in args if isinstance(each, Tensor))
        self.written += result.numel() if isinstance(result, Tensor) else 0
        return result

    @property
    def total(self) -> int:
        """Elements read and written."""
        return self.read + self.written


@measure
def transfers_per_addition(subject: Subject, *, numbers: int = 100_000) -> Reading:
    """Return the elements that a vector addition moves for each of its additions, counted on the tensors."""
    left, right = torch.ones(numbers), torch.ones(numbers)
    with _Transfers() as moved:
        added = left + right
    share = moved.total / added.numel()
    details = {"by": "torch alone", "FLOP per byte in float32": 1 / (4 * share)}
    return Reading(share, "elements an addition", details)


@measure
def growth_of_a_product(subject: Subject, *, side: int = 64) -> Reading:
    """Return the powers of n with which the operations and the transfers of an (n, n) matrix product grow.

    Both are counted at n and 2n: operations by torch's flop counter, transfers on the tensors.
    """
    flops, moved = zip(*(_product(n) for n in (side, 2 * side)), strict=True)
    found = {"operations": math.log2(flops[1] / flops[0]), "transfers": math.log2(moved[1] / moved[0])}
    return Reading(found, "as the power of n", {"by": "torch alone"})


def _product(side: int) -> tuple[int, int]:
    left, right = torch.ones(side, side), torch.ones(side, side)
    with FlopCounterMode(display=False) as counter:
        left @ right
    with _Transfers() as moved:
        left @ right
    return counter.get_total_flops(), moved.total


@measure
def power_law(subject: Subject, *, exponent: float) -> Reading:
    """Return what L ~ C^exponent says: the share of the loss that doubling C removes, and the C that halves the loss.

    Both by arithmetic: whether the exponent is right is another claim.
    """
    return Reading(
        {"lower at twice the compute": 1 - 2**exponent, "compute for half the loss": 0.5 ** (1 / exponent)},
        "",
        {
            "by": "arithmetic",
            "units": {"lower at twice the compute": "of the loss", "compute for half the loss": "times"},
        },
    )


@measure
def training_compute_ratio(subject: Subject, *, parameters: list[float], tokens: list[float]) -> Reading:
    """Return the compute of training the first model over that of the second, by 6·N·D FLOP (Kaplan et al. 2020)."""
    first, second = (6 * n * d for n, d in zip(parameters, tokens, strict=True))
    return Reading(first / second, "", {"by": "arithmetic", "FLOP": [first, second]})
