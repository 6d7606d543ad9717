"""Names that say nothing, blocks as attributes, square matrices in both orientations, positions given."""

import torch
from torch import nn
from torch.nn import functional as F


class Omega(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.alpha, self.beta, self.gamma_ = (nn.Parameter(torch.randn(width, width) * 0.02) for _ in range(3))
        self.delta = nn.Parameter(torch.randn(width, width) * 0.02)
        self.epsilon = nn.Parameter(torch.zeros(4, width))
        self.zeta, self.eta = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.theta, self.iota = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x):
        b, t, c = x.shape
        y = self.iota(x)
        v, k, q = y @ self.alpha + self.epsilon[0], y @ self.beta.T + self.epsilon[1], y @ self.gamma_ + self.epsilon[2]
        q, k, v = (z.view(b, t, self.heads, -1).transpose(1, 2) for z in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + mixed @ self.delta.T + self.epsilon[3]
        return x + self.eta(F.gelu(self.zeta(self.theta(x)), approximate="tanh"))


class Phi(nn.Module):
    def __init__(self, vocab, seq_length, embedding_size, depth, heads):
        super().__init__()
        self.depth = depth
        self.kappa = nn.Embedding(vocab, embedding_size)
        self.lambda_ = nn.Embedding(seq_length, embedding_size)
        for i in range(depth):
            setattr(self, f"omega_{i + 1}", Omega(embedding_size, heads))
        self.mu = nn.LayerNorm(embedding_size)

    def forward(self, ids, pos):
        x = self.kappa(ids) + self.lambda_(pos)
        for i in range(self.depth):
            x = getattr(self, f"omega_{i + 1}")(x)
        return {"logits": F.linear(self.mu(x), self.kappa.weight)}
