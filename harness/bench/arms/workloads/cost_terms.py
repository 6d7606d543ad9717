"""The terms by which the cost of an arm depends on its spec, and the cost of one feed-forward layer."""

from __future__ import annotations

from typing import Any

import torch

from harness.bench.arms.registry import ArmSpec
from harness.bench.arms.stored_linears import BYTES
from harness.bench.costs import FLOAT32_BYTES, Cost
from harness.core.sizes import Size


def element_bytes(arm: ArmSpec) -> int:
    """Return the bytes of one activation in memory."""
    return int(getattr(torch, arm.dtype).itemsize)


def weight_bytes(arm: ArmSpec) -> float:
    """Return the bytes of one weight of a linear layer in memory."""
    return BYTES.get(arm.stored_as or "", element_bytes(arm))


def attention_cost_kind(attention: str | None) -> Any:
    """Return the kind of attention in `harness.bench.costs`.

    Where the scores are stored, the products of every pair of positions count; else those with past positions.
    """
    return {"naive": "naive", "looped": "looped", "sdpa-math": "naive"}.get(attention or "flash", "flash")


def dense_layer_cost(size: Size, *, tokens: int, hidden: int, element_bytes: int = FLOAT32_BYTES) -> Cost:
    """Return the cost of an MLP from C to `hidden` channels and back, without a block around it."""
    weights = 2 * size.width * hidden
    return Cost(2 * weights * tokens, (weights + hidden + size.width + 2 * tokens * size.width) * element_bytes)


def expert_layer_cost(
    size: Size, *, tokens: int, experts: int, per_token: int, hidden: int, element_bytes: int = FLOAT32_BYTES
) -> Cost:
    """Return the cost of E experts of which k compute a token: 2 (C E + k 2 C F) FLOPs a token.

    Of the experts, those are read that a token is sent to. Of N tokens with k of E experts each, evenly drawn, they are
    E (1 - (1 - k/E)^N).
    """
    one = 2 * size.width * hidden
    router = size.width * experts
    read = experts * (1 - (1 - per_token / experts) ** tokens)
    moved = router + read * (one + hidden + size.width) + 2 * tokens * size.width
    return Cost(2 * (router + per_token * one) * tokens, moved * element_bytes)
