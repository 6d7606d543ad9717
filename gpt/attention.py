"""Causal self-attention in three forms of one function: looped over the heads, naive and flash.

The letters: B sequences of T tokens, C channels, H heads of size D = C / H. With a key-value cache, T queries meet
S >= T keys; without one, S = T.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.cache import CacheLayer
from gpt.config import GPTConfig
from gpt.linear import Linear


def causal_mask(size: int, device: torch.device | str | None = None) -> Tensor:
    """Return the causal mask, (T, T): True where a row's query may attend to a column's key, the past and itself."""
    return torch.ones(size, size, dtype=torch.bool, device=device).tril()


def visible(mask: Tensor, queries: int, keys: int) -> Tensor:
    """Return the part of the mask for the last `queries` of `keys` positions, (queries, keys).

    The queries are the latest positions, so the mask is aligned at its bottom right. Aligned at the
    top left, as `is_causal` does, a new token would see only the first key.
    """
    return mask[keys - queries : keys, :keys]


class Head(nn.Module):
    """One head of attention: softmax(q kᵀ / √D) v, over the past only."""

    mask: Tensor

    def __init__(self, config: GPTConfig, mask: Tensor | None = None) -> None:
        super().__init__()
        self.query = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.key = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.value = Linear(config.n_embd, config.head_size, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)
        # Not persistent: the mask is not a weight, and published checkpoints do not contain it.
        mask = causal_mask(config.block_size) if mask is None else mask
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor, cache: CacheLayer | None = None) -> Tensor:
        """(B, T, C) -> (B, T, D)."""
        q, k, v = self.query(x), self.key(x), self.value(x)  # (B, T, C) -> 3 × (B, T, D)
        # A cache adds the new keys and values, and attends over the past as well.
        return self.attend(q, k, v) if cache is None else cache.attend(q, k, v, self.attend)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, T, D), 2 × (B, S, D) -> (B, T, D), by the formula."""
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, T, D) @ (B, D, S) -> (B, T, S)
        scores = scores.masked_fill(~visible(self.mask, q.size(-2), k.size(-2)), -math.inf)
        weights = self.dropout(scores.softmax(dim=-1))
        out: Tensor = weights @ v  # (B, T, S) @ (B, S, D) -> (B, T, D)
        return out


class LoopedSelfAttention(nn.Module):
    """Multi-head attention as it is taught: compute each head in turn, concatenate the results and mix them."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        mask = causal_mask(config.block_size)  # one for all heads
        self.heads = nn.ModuleList(Head(config, mask) for _ in range(config.n_head))
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.resid_dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, cache: CacheLayer | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        parts = [head(x, cache and cache.head(number)) for number, head in enumerate(self.heads)]
        y = torch.cat(parts, dim=-1)  # H × (B, T, D) -> (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out


class CausalSelfAttention(nn.Module):
    """The same function with all heads in one multiplication; `config.attention` selects naive or flash."""

    mask: Tensor

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd, bias=config.bias)  # query, key, value
        self.c_proj = Linear(config.n_embd, config.n_embd, bias=config.bias)
        self.attn_dropout = nn.Dropout(config.dropout)
        self.resid_dropout = nn.Dropout(config.dropout)
        self.flash = config.attention == "flash"
        self.register_buffer("mask", causal_mask(config.block_size), persistent=False)

    def forward(self, x: Tensor, cache: CacheLayer | None = None) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        B, T, _ = x.shape
        q, k, v = self.c_attn(x).chunk(3, dim=2)  # (B, T, C) -> (B, T, 3C) -> 3 × (B, T, C)
        q = q.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        k = k.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        v = v.view(B, T, self.n_head, -1).transpose(1, 2)  # (B, T, C) -> (B, T, H, D) -> (B, H, T, D)
        attend = self.attend_flash if self.flash else self.attend_naive
        # A cache adds the new keys and values, and attends over the past as well.
        y = attend(q, k, v) if cache is None else cache.attend(q, k, v, attend)
        y = y.transpose(1, 2).reshape(B, T, -1)  # (B, H, T, D) -> (B, T, H, D) -> (B, T, C)
        out: Tensor = self.resid_dropout(self.c_proj(y))
        return out

    def attend_naive(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D), 2 × (B, H, S, D) -> (B, H, T, D), by the formula: T × S scores are stored."""
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))  # (B, H, T, D) @ (B, H, D, S) -> (B, H, T, S)
        scores = scores.masked_fill(~visible(self.mask, q.size(-2), k.size(-2)), -math.inf)
        weights: Tensor = self.attn_dropout(scores.softmax(dim=-1))
        return weights @ v  # (B, H, T, S) @ (B, H, S, D) -> (B, H, T, D)

    def attend_flash(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, H, T, D), 2 × (B, H, S, D) -> (B, H, T, D), tile by tile: no scores are stored."""
        T, S = q.size(-2), k.size(-2)
        dropout = self.attn_dropout.p if self.training else 0.0
        if T == 1:  # the latest position sees everything: no mask
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        if T == S:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout)
        return F.scaled_dot_product_attention(q, k, v, visible(self.mask, T, S), dropout_p=dropout)
