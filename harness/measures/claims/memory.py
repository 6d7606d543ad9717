"""Measures of claims about memory: the key-value cache, the attention matrix, and flash attention's statistics."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.bench import costs
from harness.bench.memory import peak_bytes
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.subjects.protocols import Caches, Subject
from harness.suites.measure_registry import Reading, measure

TILE = 128  # keys that the online softmax sees at once


@measure
def cache_allocation(subject: Caches, *, size: str, rows: int, dtype: str = "bfloat16") -> Reading:
    """Return the bytes that the allocator gives to a new key-value cache for `rows` sequences of the whole context.

    Raises MissingAbility if a new cache is empty, because it grows.
    """
    model = cached_model(subject, size, "standard", dtype)
    found = peak_bytes(lambda: subject.new_cache(model, rows))["profiler"]
    if not found:
        raise MissingAbility(f"a new cache of {subject.name} has no memory yet: it grows")
    by_formula = costs.cache_bytes(SIZES[size], tokens=SIZES[size].context, batch=rows)
    return Reading(found, "bytes", {"closed form": by_formula, "dtype": dtype})


@measure
def attention_matrix(
    subject: Subject, *, tokens: int, heads: int, head_width: int = 1, dtype: str = "bfloat16"
) -> Reading:
    """Return the bytes of memory that torch gives the scores q kᵀ of one sequence in `dtype`, in a real product.

    The scores are (1, H, T, T) whatever the width of a head. It is 1, since products in 16 bits are slow on some
    processors. The scratch memory that a product takes beside its result depends on the processor: see the details.
    """
    q, k = _normal(2, tokens, heads, head_width).to(getattr(torch, dtype))
    scores: list[Tensor] = []
    peak = peak_bytes(lambda: scores.append(q @ k.mT))["profiler"]
    found = scores[0].untyped_storage().nbytes()
    details = {"by": "torch alone", "dtype": dtype, "std of the scores": float(scores[0][0, 0].float().std())}
    return Reading(found, "bytes", {**details, "scratch bytes": peak - found})


@measure
def row_statistics(subject: Subject, *, tokens: int, heads: int, head_width: int = 8) -> Reading:
    """Return the bytes that flash attention keeps for each row instead of the scores, in float32.

    "max and sum": of the online softmax (FlashAttention, Dao et al. 2022, algorithm 1), run here tile by tile.
    "logsumexp": of FlashAttention-2, which merges the two, as torch's kernel returns it. The details have the largest
    difference of the tile-by-tile output from torch's.
    """
    q, k, v = _normal(3, tokens, heads, head_width)
    output, maximum, total = _online_softmax(q, k, v)
    expected = F.scaled_dot_product_attention(q, k, v)
    found = {"max and sum": maximum.nbytes + total.nbytes}
    kernel = getattr(torch.ops.aten, "_scaled_dot_product_flash_attention_for_cpu", None)
    if kernel is not None:
        found["logsumexp"] = kernel(q, k, v)[1].nbytes
    return Reading(found, "bytes", {"largest difference": float((output - expected).abs().max())})


def _online_softmax(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return attention (B, H, T, D) without a (T, T) matrix, and the maximum and the sum of each row (B, H, T, 1)."""
    q = q * q.size(-1) ** -0.5
    maximum = q.new_full((*q.shape[:-1], 1), -torch.inf)
    total, output = torch.zeros_like(maximum), torch.zeros_like(q)
    for keys, values in zip(k.split(TILE, dim=-2), v.split(TILE, dim=-2), strict=True):
        scores = q @ keys.mT  # (B, H, T, TILE)
        higher = torch.maximum(maximum, scores.amax(-1, keepdim=True))
        shrunk, weights = (maximum - higher).exp_(), scores.sub_(higher).exp_()
        total = total.mul_(shrunk).add_(weights.sum(-1, keepdim=True))
        output = output.mul_(shrunk).add_(weights @ values)
        maximum = higher
    return output / total, maximum, total


def _normal(count: int, tokens: int, heads: int, head_width: int) -> Tensor:
    """Return `count` seeded tensors (1, H, T, D), stacked."""
    return torch.randn(count, 1, heads, tokens, head_width, generator=torch.Generator().manual_seed(0))
