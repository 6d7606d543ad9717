"""Queries apart, keys and values in one projection; a class for what is done before, and one list for both branches."""

import torch
from torch import einsum, nn


class Before(nn.Module):
    def __init__(self, width, then):
        super().__init__()
        self.norm, self.then = nn.LayerNorm(width), then

    def forward(self, x):
        return self.then(self.norm(x))


class Mixing(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.to_q, self.to_kv, self.to_out = (nn.Linear(width, n * width) for n in (1, 2, 1))

    def forward(self, x):
        b, t, _ = x.shape
        k, v = self.to_kv(x).chunk(2, -1)
        q, k, v = (y.reshape(b, t, self.heads, -1).permute(0, 2, 1, 3) for y in (self.to_q(x), k, v))
        scores = einsum("bhid,bhjd->bhij", q * q.shape[-1] ** -0.5, k)
        seen = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf).softmax(-1)
        return self.to_out(einsum("bhij,bhjd->bhid", seen, v).permute(0, 2, 1, 3).reshape(b, t, -1))


class Pairs(nn.Module):
    def __init__(self, *, num_tokens, max_seq_len, dim, depth, heads):
        super().__init__()
        self.token_emb, self.pos_emb = nn.Embedding(num_tokens, dim), nn.Embedding(max_seq_len, dim)
        self.layers = nn.ModuleList()
        for _ in range(depth):
            wide = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU("tanh"), nn.Linear(4 * dim, dim))
            self.layers.append(nn.ModuleList([Before(dim, Mixing(dim, heads)), Before(dim, wide)]))
        self.norm = nn.LayerNorm(dim)

    def forward(self, ids):
        x = self.token_emb(ids) + self.pos_emb(torch.arange(ids.shape[1]))
        for mixing, wide in self.layers:
            x = mixing(x) + x
            x = wide(x) + x
        return self.norm(x) @ self.token_emb.weight.T
