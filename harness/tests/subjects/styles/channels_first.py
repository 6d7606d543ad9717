"""(batch, channels, time) inside the attention, made of convolutions; layers in lists by kind, not by layer."""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Mixing(nn.Module):
    def __init__(self, channels, heads):
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)
        self.value, self.merge = nn.Conv1d(channels, channels, 1), nn.Conv1d(channels, channels, 1)

    def forward(self, x):  # (B, C, T)
        q, k, v = self.query(x), self.key(x), self.value(x)
        q, k, v = (y.unflatten(1, (self.heads, -1)) for y in (q, k, v))
        scores = torch.einsum("bhdt,bhds->bhts", q, k) / math.sqrt(q.shape[2])
        later = torch.ones_like(scores[0, 0], dtype=torch.bool).triu(1)
        mixed = torch.einsum("bhts,bhds->bhdt", scores.masked_fill(later, -math.inf).softmax(-1), v)
        return self.merge(mixed.flatten(1, 2))


class ByKind(nn.Module):
    def __init__(self, vocab_size, n_positions, d_model, n_heads, n_layers):
        super().__init__()
        self.word_embeddings = nn.Embedding(vocab_size, d_model)
        self.position_embeddings = nn.Embedding(n_positions, d_model)
        self.mixing = nn.ModuleList(Mixing(d_model, n_heads) for _ in range(n_layers))
        self.before_mixing = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(n_layers))
        self.before_wide = nn.ModuleList(nn.LayerNorm(d_model) for _ in range(n_layers))
        self.wide = nn.ModuleList(nn.Linear(d_model, 4 * d_model) for _ in range(n_layers))
        self.narrow = nn.ModuleList(nn.Linear(4 * d_model, d_model) for _ in range(n_layers))
        self.after = nn.LayerNorm(d_model)

    def forward(self, ids):
        x = self.word_embeddings(ids) + self.position_embeddings.weight[: ids.shape[1]]
        for i in range(len(self.mixing)):
            x = x + self.mixing[i](self.before_mixing[i](x).transpose(1, 2)).transpose(1, 2)
            x = x + self.narrow[i](F.gelu(self.wide[i](self.before_wide[i](x)), approximate="tanh"))
        return self.after(x) @ self.word_embeddings.weight.T
