"""The terms by which the cost of an arm depends on its spec: bytes of a weight, kind of attention."""

from __future__ import annotations

from typing import Any

import torch

from harness.bench.arms.registry import ArmSpec


def element_bytes(arm: ArmSpec) -> int:
    """Return the bytes of one weight in memory."""
    return int(getattr(torch, arm.dtype).itemsize)


def attention_cost_kind(attention: str | None) -> Any:
    """Return the kind of attention in `harness.bench.costs`.

    Where the scores are stored, the products of every pair of positions count; else those with past positions.
    """
    return {"naive": "naive", "looped": "looped", "sdpa-math": "naive"}.get(attention or "flash", "flash")
