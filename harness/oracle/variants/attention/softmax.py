"""Variants of the attention weights: the softmax over the scores, and the mix of the values by it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation
from harness.oracle.variants.variant import Variant


def softmax_plus_one(at: At, scores: Tensor) -> Tensor:
    """Return the softmax with 1 added to its denominator: a further key of score 0, whose weight is dropped."""
    return F.pad(scores, (0, 1)).softmax(-1)[..., :-1]


def masked_and_repeated(at: At, scores: Tensor) -> Tensor:
    """Return the softmax of the masked softmax."""
    return scores.softmax(-1).masked_fill(scores.isinf(), -math.inf).softmax(-1)


def computed_in(dtype: torch.dtype) -> Operation:
    """Return the softmax computed in `dtype`."""
    return lambda at, scores: scores.to(dtype).softmax(-1).to(scores.dtype)


def weights_rounded_to(dtype: torch.dtype) -> Operation:
    """Return the softmax with its result rounded to `dtype`."""
    return lambda at, scores: scores.softmax(-1).to(dtype).to(scores.dtype)


def scores_rounded_to(dtype: torch.dtype) -> Operation:
    """Return the softmax of scores that are rounded to `dtype`."""
    return lambda at, scores: scores.to(dtype).to(scores.dtype).softmax(-1)


def without_head(head: int) -> Operation:
    """Return the mix with the output of one head set to zero; -1 is the last head."""

    def mix(at: At, weights: Tensor, values: Tensor) -> Tensor:
        mixed = weights @ values
        return mixed.index_fill(1, torch.tensor([head % mixed.shape[1]]), 0.0)

    return mix


# at; scores (B, H, T, S) -> (B, H, T, S)
SOFTMAX = (
    Variant("softmax-over-queries", "attn.softmax", "the softmax is over the queries, not over the keys", lambda at, scores: scores.softmax(-2)),
    Variant("softmax-over-queries", "attn.softmax", "the softmax is over the heads", lambda at, scores: scores.softmax(1)),
    Variant("softmax-over-queries", "attn.softmax", "the softmax is over the batch", lambda at, scores: scores.softmax(0)),
    Variant("softmax-missing", "attn.softmax", "the scores are used without a softmax", lambda at, scores: scores.masked_fill(scores.isinf(), 0.0)),
    Variant("softmax-is-sigmoid", "attn.softmax", "a sigmoid replaces the softmax", lambda at, scores: scores.sigmoid()),
    Variant("softmax-off-by-one", "attn.softmax", "the softmax has 1 added to its denominator", softmax_plus_one),
    Variant("softmax-twice", "attn.softmax", "the softmax is applied twice", lambda at, scores: scores.softmax(-1).softmax(-1)),
    Variant("softmax-twice", "attn.softmax", "the softmax is applied, masked, and applied again", masked_and_repeated),
    Variant("softmax-low-precision", "attn.softmax", "the softmax is computed in bfloat16", computed_in(torch.bfloat16)),
    Variant("softmax-low-precision", "attn.softmax", "the attention weights are rounded to bfloat16", weights_rounded_to(torch.bfloat16)),
    Variant("softmax-low-precision", "attn.softmax", "the scores are rounded to bfloat16", scores_rounded_to(torch.bfloat16)),
    Variant("softmax-low-precision", "attn.softmax", "the softmax is computed in float16", computed_in(torch.float16)),
    Variant("softmax-low-precision", "attn.softmax", "the attention weights are rounded to float16", weights_rounded_to(torch.float16)),
    Variant("softmax-low-precision", "attn.softmax", "the scores are rounded to float16", scores_rounded_to(torch.float16)),
)  # fmt: skip

# at; weights (B, H, T, S), values (B, H, S, D) -> (B, H, T, D)
MIX = (
    Variant("mix-transposed", "attn.mix", "the values are mixed with the attention weights transposed", lambda at, weights, values: weights.mT @ values),
    Variant("head-dropped", "attn.mix", "the last head's output is dropped", without_head(-1)),
    Variant("head-dropped", "attn.mix", "the first head's output is dropped", without_head(0)),
    Variant("mix-missing", "attn.mix", "the values are not mixed by the attention weights", lambda at, weights, values: values),
)  # fmt: skip
