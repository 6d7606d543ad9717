"""Variants of the attention scores: the product of queries and keys, and its scale."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.oracle.formula import At, Operation, operation_of
from harness.oracle.variants.variant import Variant


def scaled(factor: Callable[[Size], float]) -> Operation:
    """Return the multiplication of the scores by `factor(size)`."""
    return lambda at, scores: scores * factor(at.size)


def divided_by_layer(at: At, scores: Tensor) -> Tensor:
    """Divide by sqrt(head width), and by the number of the layer counted from 1."""
    assert at.layer is not None
    return scores / math.sqrt(at.size.head_width) / (at.layer + 1)


def clamped(bound: float) -> Operation:
    """Return GPT-2's scaled scores clamped to ±bound."""
    return lambda at, scores: operation_of("attn.scale")(at, scores).clamp(-bound, bound)


def soft_capped(cap: float) -> Operation:
    """Return GPT-2's scaled scores capped by a tanh."""
    return lambda at, scores: cap * (operation_of("attn.scale")(at, scores) / cap).tanh()


def limited(bound: float) -> tuple[Variant, Variant]:
    """Return the two ways to limit the scaled scores to ±bound."""
    return (
        Variant("scores-clamped", "attn.scale", f"the scores are clamped to ±{bound:g}", clamped(bound)),
        Variant("scores-soft-capped", "attn.scale", f"the scores are soft-capped at {bound:g}", soft_capped(bound)),
    )


# at; q (B, H, T, D), k (B, H, S, D) -> (B, H, T, S)
PRODUCT = (
    Variant("scores-transposed", "attn.scores", "the scores are K Qᵀ instead of Q Kᵀ", lambda at, q, k: k @ q.mT),
    Variant("scores-negated", "attn.scores", "the scores have the wrong sign", lambda at, q, k: -(q @ k.mT)),
    Variant("scores-by-distance", "attn.scores", "the scores are distances, not products", lambda at, q, k: -torch.cdist(q, k).pow(2)),
)  # fmt: skip

# at; scores (B, H, T, S) -> (B, H, T, S)
SCALE = (
    Variant("scale-missing", "attn.scale", "the scores are not divided by sqrt(head size)", scaled(lambda size: 1.0)),
    Variant("scale-by-n-head", "attn.scale", "the scores are divided by sqrt(number of heads)", scaled(lambda size: size.heads**-0.5)),
    Variant("scale-by-d-model", "attn.scale", "the scores are divided by sqrt(width), not by sqrt(head size)", scaled(lambda size: size.width**-0.5)),
    Variant("scale-inverted", "attn.scale", "the scores are multiplied by sqrt(head size)", scaled(lambda size: size.head_width**0.5)),
    Variant("scale-without-root", "attn.scale", "the scores are divided by the head size: the square root is missing, or is divided by twice", scaled(lambda size: 1 / size.head_width)),
    Variant("scale-by-n-head", "attn.scale", "the scores are divided by the number of heads", scaled(lambda size: 1 / size.heads)),
    Variant("scale-by-d-model", "attn.scale", "the scores are divided by the width", scaled(lambda size: 1 / size.width)),
    Variant("scale-half", "attn.scale", "only queries or only keys are scaled by a fourth root, not both", scaled(lambda size: size.head_width**-0.25)),
    Variant("scale-by-d-model", "attn.scale", "the scores are divided by sqrt(3 · width)", scaled(lambda size: (3 * size.width) ** -0.5)),
    Variant("scale-by-context", "attn.scale", "the scores are divided by sqrt(context)", scaled(lambda size: size.context**-0.5)),
    Variant("scale-by-constant", "attn.scale", "the scores are divided by 8, which is right for a head size of 64 only", scaled(lambda size: 1 / 8)),
    Variant("scale-by-context", "attn.scale", "the scores are divided by sqrt(number of tokens)", lambda at, scores: scores / math.sqrt(scores.shape[-1])),
    Variant("scale-by-layer", "attn.scale", "the scores are divided by the layer's number as well (scale_attn_by_inverse_layer_idx)", divided_by_layer),
    *(variant for bound in (10.0, 20.0, 30.0, 50.0, 5.0) for variant in limited(bound)),
)  # fmt: skip

SCORES = (*PRODUCT, *SCALE)
