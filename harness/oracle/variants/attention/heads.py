"""Variants of the heads: how the fused projection is split into them, and how they are merged."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation, heads, operation_of
from harness.oracle.variants.variant import Variant

Heads = tuple[Tensor, ...]  # queries, keys and values, each (B, H, T, D)


def read_as(names: str) -> Operation:
    """Return the split that reads the thirds of c_attn's output in the order `names`, such as "kqv"."""

    def split(at: At, qkv: Tensor) -> Heads:
        parts = dict(zip(names, qkv.chunk(3, dim=-1), strict=True))
        return tuple(heads(at, parts[name]) for name in "qkv")

    return split


def interleaved_by_head(at: At, qkv: Tensor) -> Heads:
    """Split channels as (H, 3, D): query, key and value of each head in turn."""
    parts = qkv.unflatten(-1, (at.size.heads, 3, at.size.head_width))  # (B, T, H, 3, D)
    return tuple(parts.transpose(1, 2).unbind(3))


def interleaved_by_channel(at: At, qkv: Tensor) -> Heads:
    """Split channels as (C, 3): query, key and value alternate."""
    return tuple(heads(at, part) for part in qkv.unflatten(-1, (at.size.width, 3)).unbind(-1))


def interleaved_by_channel_of_head(at: At, qkv: Tensor) -> Heads:
    """Split channels as (H, D, 3), and swap time and heads before the last axis is unbound."""
    return tuple(qkv.unflatten(-1, (at.size.heads, at.size.head_width, 3)).transpose(1, 2).unbind(-1))


def viewed(at: At, x: Tensor) -> Tensor:
    """Return (B, T, C) as (B, H, T, D) by a reshape, without a transpose."""
    return x.reshape(x.shape[0], at.size.heads, x.shape[1], at.size.head_width)


def strided(at: At, x: Tensor) -> Tensor:
    """Return (B, T, C) as (B, H, T, D), with channels split as (D, H)."""
    apart: Tensor = x.unflatten(-1, (at.size.head_width, at.size.heads))
    return apart.permute(0, 3, 1, 2)


def split_by(function: Callable[[At, Tensor], Tensor], names: str = "qkv") -> Operation:
    """Return the split that gives heads to the parts in `names` by `function`, and to the others as GPT-2 does."""

    def split(at: At, qkv: Tensor) -> Heads:
        parts = zip("qkv", qkv.chunk(3, dim=-1), strict=True)
        return tuple(function(at, part) if name in names else heads(at, part) for name, part in parts)

    return split


def after_split(function: Callable[[Tensor, Tensor, Tensor], Heads]) -> Operation:
    """Return GPT-2's split followed by `function(q, k, v)`."""
    return lambda at, qkv: function(*operation_of("attn.split")(at, qkv))


def of_head_0(x: Tensor) -> Tensor:
    """Return (B, H, T, D) with the values of head 0 in every head."""
    return x[:, :1].expand_as(x)


# at; qkv (B, T, 3C) -> 3 × (B, H, T, D)
SPLIT = (
    *(Variant("qkv-order-swapped-code", "attn.split", f"the fused projection is read as {', '.join(names)}; GPT-2's checkpoint is q, k, v", read_as(names)) for names in ("kqv", "vkq", "qvk", "kvq", "vqk")),
    Variant("qkv-interleaved-per-head", "attn.split", "the fused projection is read as [q, k, v] for each head; GPT-2's checkpoint has all q, all k, all v", interleaved_by_head),
    Variant("qkv-interleaved-per-head", "attn.split", "the fused projection is read as q, k, v alternating by channel", interleaved_by_channel),
    Variant("qkv-interleaved-per-head", "attn.split", "the fused projection is read as q, k, v alternating by channel", interleaved_by_channel_of_head),
    Variant("head-split-view-no-transpose", "attn.split", "heads are split by a view to (B, H, T, D) without a transpose: positions and features mix", split_by(viewed)),
    Variant("head-split-view-no-transpose", "attn.split", "the queries are split into heads by a view without a transpose", split_by(viewed, "q")),
    Variant("head-split-view-no-transpose", "attn.split", "the keys are split into heads by a view without a transpose", split_by(viewed, "k")),
    Variant("head-split-view-no-transpose", "attn.split", "the values are split into heads by a view without a transpose", split_by(viewed, "v")),
    Variant("head-split-wrong-factor", "attn.split", "channels are split as (D, H) instead of (H, D): heads are strided", split_by(strided)),
    Variant("heads-share-keys", "attn.split", "every head uses the keys of head 0", after_split(lambda q, k, v: (q, of_head_0(k), v))),
    Variant("heads-share-values", "attn.split", "every head uses the values of head 0", after_split(lambda q, k, v: (q, k, of_head_0(v)))),
    Variant("heads-share-keys", "attn.split", "every head uses the keys and values of head 0 (multi-query)", after_split(lambda q, k, v: (q, of_head_0(k), of_head_0(v)))),
    Variant("heads-share-queries", "attn.split", "every head uses the queries of head 0", after_split(lambda q, k, v: (of_head_0(q), k, v))),
    Variant("key-is-query", "attn.split", "the keys are the queries", after_split(lambda q, k, v: (q, q, v)), where="attn.qkv"),
    Variant("query-is-key", "attn.split", "the queries are the keys", after_split(lambda q, k, v: (k, k, v)), where="attn.qkv"),
    Variant("value-is-key", "attn.split", "the values are the keys", after_split(lambda q, k, v: (q, k, k)), where="attn.qkv"),
    Variant("value-is-query", "attn.split", "the values are the queries", after_split(lambda q, k, v: (q, k, q)), where="attn.qkv"),
    Variant("query-is-value", "attn.split", "the queries are the values", after_split(lambda q, k, v: (v, k, v)), where="attn.qkv"),
    Variant("key-is-value", "attn.split", "the keys are the values", after_split(lambda q, k, v: (q, v, v)), where="attn.qkv"),
    Variant("qk-normalised", "attn.split", "queries and keys are normalised", after_split(lambda q, k, v: (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v))),
)  # fmt: skip

# at; mixed values m (B, H, T, D) -> (B, T, C)
MERGE = (
    Variant("head-merge-no-transpose", "attn.merge", "heads are merged by a reshape without a transpose: tokens receive features of other positions", lambda at, m: m.reshape(m.shape[0], m.shape[2], -1)),
    Variant("head-merge-wrong-factor", "attn.merge", "heads are merged as (D, H) instead of (H, D)", lambda at, m: m.permute(0, 2, 3, 1).flatten(2)),
    Variant("head-merge-wrong-factor", "attn.merge", "heads are merged in reverse", lambda at, m: m.flip(1).transpose(1, 2).flatten(2)),
    Variant("head-merge-no-transpose", "attn.merge", "heads are merged from (B, D, T, H)", lambda at, m: m.transpose(1, 3).reshape(m.shape[0], m.shape[2], -1)),
    Variant("head-merge-no-transpose", "attn.merge", "heads are merged after the wrong transpose", lambda at, m: m.transpose(2, 3).reshape(m.shape[0], m.shape[2], -1)),
)  # fmt: skip
