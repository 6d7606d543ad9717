"""Variants of the scores: rotary positions, with which queries and keys are rotated by their position."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.oracle.formula import At, Operation
from harness.oracle.variants.variant import Variant

BASE = 10_000.0  # of RoFormer (Su et al. 2021) and of Llama


def rotated(x: Tensor, first: int, *, interleaved: bool, base: float = BASE) -> Tensor:
    """Return queries or keys x (B, H, T, D), each rotated by its position; `first` is the position of the first.

    Channels are rotated in pairs: neighbours if `interleaved` (RoFormer, GPT-J, Meta's Llama), else a channel of the
    first half with one of the second (GPT-NeoX, Hugging Face's Llama).

    The angles are computed in float32 except in a float64 pass, as right programs do: the rounding of an angle of 1,000
    radians is ten times the rest of the error of a float32 pass, and belongs to its floor.
    """
    T, D = x.shape[-2:]
    precision = torch.promote_types(x.dtype, torch.float32)
    frequencies = base ** -(torch.arange(0, D, 2, dtype=precision, device=x.device) / D)
    angles = torch.arange(first, first + T, device=x.device)[:, None] * frequencies  # (T, D / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    pairs = x.unflatten(-1, (-1, 2)) if interleaved else x.unflatten(-1, (2, -1)).mT  # (B, H, T, D / 2, 2)
    a, b = pairs.unbind(-1)
    turned = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return turned.flatten(-2) if interleaved else turned.mT.flatten(-2)


def rotary_scores(*, interleaved: bool, base: float = BASE) -> Operation:
    """Return the scores (B, H, T, S) of queries q (B, H, T, D) and keys k (B, H, S, D), rotated by their positions.

    The queries are those of the last T of S positions.
    """

    def scores(at: At, q: Tensor, k: Tensor) -> Tensor:
        first = k.shape[-2] - q.shape[-2]
        turned = rotated(q, first, interleaved=interleaved, base=base)
        return turned @ rotated(k, 0, interleaved=interleaved, base=base).mT

    return scores


# at; q (B, H, T, D), k (B, H, S, D) -> (B, H, T, S)
ROTARY = (
    Variant("rotary-positions", "attn.scores", "queries and keys are rotated by their position (rotary positions), by halves", rotary_scores(interleaved=False)),
    Variant("rotary-positions", "attn.scores", "queries and keys are rotated by their position (rotary positions), by neighbouring channels", rotary_scores(interleaved=True)),
)  # fmt: skip
