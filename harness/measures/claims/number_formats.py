"""Measures of claims about 16-bit numbers: their bits, what is lost in a sum, and what is lost in a training step."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.oracle.tokens import batch
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure

Format = Literal["float32", "bfloat16", "float16"]


@measure
def format_bits(subject: Subject, *, dtype: Literal["bfloat16", "float16"]) -> Reading:
    """Return the exponent and mantissa bits of a 16-bit format, counted on all 65,536 of its bit patterns.

    Half-open binades such as [1, 2) contain 2^mantissa numbers. The largest finite number is just below 2^(bias + 1),
    and the exponent counts to 2·(bias + 1).
    """
    numbers = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(getattr(torch, dtype)).double()
    mantissa = math.log2(int(((numbers >= 1) & (numbers < 2)).sum()))
    bias = math.floor(math.log2(float(numbers[numbers.isfinite()].max())))
    exponent = math.log2(2 * (bias + 1))
    return Reading({"exponent": int(exponent), "mantissa": int(mantissa)}, "bits")


@measure
def one_plus(subject: Subject, *, dtype: Format, step: float = 1e-4) -> Reading:
    """Return 1 + step computed in the format; the details have the next number after 1."""
    one = torch.ones((), dtype=getattr(torch, dtype))
    found = one + torch.tensor(step, dtype=one.dtype)
    following = torch.nextafter(one.float(), one.float() * 2) if dtype == "float32" else _following(one)
    return Reading(float(found), "", {"dtype": dtype, "step": step, "spacing": float(following) - 1.0})


def _following(one: Tensor) -> Tensor:
    """Return the next 16-bit number: the one whose bit pattern is one higher."""
    return (one.view(torch.int16) + 1).view(one.dtype)


@measure
def updates_lost(
    subject: Subject, *, size: str, dtype: Format, lr: float = 6e-4, rows: int = 4, length: int = 24
) -> Reading:
    """Return the share of weights that one step of AdamW leaves bitwise unchanged though their gradient is not 0.

    The model, its gradients and AdamW's moments are all in `dtype`. By kind of weight: gains start at 1, matrices and
    embeddings at std 0.02.
    """
    model = subject.build(SIZES[size], dtype=dtype)
    model.module.train()
    ids, targets = batch(SIZES[size], "random", rows=rows, length=length)
    before = _copied(model.published_state())
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=lr, betas=(0.9, 0.95), weight_decay=0.0)
    model.loss(ids, targets).backward()
    optimizer.step()
    after = model.published_state()
    lost: dict[str, list[Tensor]] = {}
    for name, gradient in model.gradients().items():
        moved = gradient != 0
        lost.setdefault(_kind(name), []).append((before[name] == after[name])[moved])
    shares = {kind: float(torch.cat(parts).double().mean()) for kind, parts in lost.items()}
    return Reading(shares, "of the weights", {"lr": lr, "dtype": dtype})


def _copied(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _kind(published: str) -> str:
    name = family(published)
    if name.startswith("ln_"):
        return "gains" if name.endswith("weight") else "biases of norms"
    if name.endswith("bias"):
        return "biases"
    return "embeddings" if name.startswith(("wte", "wpe")) else "matrices"
