"""Layers as pairs in nested lists, norms as wrappers, one projection for queries and one for keys and values."""

import torch
from torch import nn


class PreNorm(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.norm, self.fn = nn.LayerNorm(dim), fn

    def forward(self, x):
        return self.fn(self.norm(x))


class Attention(nn.Module):
    def __init__(self, dim, heads, dim_head):
        super().__init__()
        self.heads, self.scale = heads, dim_head**-0.5
        self.to_q = nn.Linear(dim, heads * dim_head)
        self.to_kv = nn.Linear(dim, 2 * heads * dim_head)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.0))

    def forward(self, x):
        n = x.shape[1]
        q, (k, v) = self.to_q(x), self.to_kv(x).chunk(2, dim=-1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).movedim(2, 1) for t in (q, k, v))
        dots = (q * self.scale) @ k.mT
        dots = dots.masked_fill(torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1), -torch.finfo(x.dtype).max)
        return self.to_out((dots.softmax(-1) @ v).movedim(1, 2).flatten(2))


class Decoder(nn.Module):
    def __init__(self, *, num_tokens, max_seq_len, dim, depth, heads, dim_head=64, ff_mult=4):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(num_tokens, dim), nn.Embedding(max_seq_len, dim)
        self.layers = nn.ModuleList(
            nn.ModuleList(
                [
                    PreNorm(dim, Attention(dim, heads, dim_head)),
                    PreNorm(
                        dim,
                        nn.Sequential(nn.Linear(dim, dim * ff_mult), nn.GELU("tanh"), nn.Linear(dim * ff_mult, dim)),
                    ),
                ]
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(dim)

    def forward(self, x):
        x = self.token_emb(x) + self.pos_emb(torch.arange(x.shape[1], device=x.device))
        for attention, feed_forward in self.layers:
            x = attention(x) + x
            x = feed_forward(x) + x
        return self.norm(x) @ self.token_emb.weight.t()
