"""Half of GPT-2 and half of Llama: RMSNorm, rotary positions, SwiGLU, grouped queries, no biases, an untied head."""

import math

import torch
from torch import nn
from torch.nn import functional as F


class RootMeanSquare(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.eps, self.scale = eps, nn.Parameter(torch.ones(width))

    def forward(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.scale


def turn(x, first=0):
    """Rotate channel i with channel i + D / 2 of x (B, H, T, D), by the position."""
    half = x.shape[-1] // 2
    speeds = 10_000 ** (-torch.arange(half) / half)
    angles = torch.outer(torch.arange(first, first + x.shape[-2]), speeds)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class GroupedAttention(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.size = width // heads
        self.group = heads // kv_heads
        self.wq = nn.Linear(width, width, bias=False)
        self.wk = nn.Linear(width, kv_heads * self.size, bias=False)
        self.wv = nn.Linear(width, kv_heads * self.size, bias=False)
        self.wo = nn.Linear(width, width, bias=False)

    def forward(self, x):
        q, k, v = (part(x).unflatten(-1, (-1, self.size)).transpose(1, 2) for part in (self.wq, self.wk, self.wv))
        q, k = turn(q), turn(k)
        k, v = k.repeat_interleave(self.group, 1), v.repeat_interleave(self.group, 1)
        scores = q @ k.mT / math.sqrt(self.size)
        future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
        scores = scores.masked_fill(future, -math.inf)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        return self.wo(mixed)


class GatedFeedForward(nn.Module):
    def __init__(self, width):
        super().__init__()
        hidden = 32 * math.ceil(8 * width / 3 / 32)
        self.w1 = nn.Linear(width, hidden, bias=False)
        self.w2 = nn.Linear(hidden, width, bias=False)
        self.w3 = nn.Linear(width, hidden, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, width, heads, kv_heads):
        super().__init__()
        self.attention_norm, self.attention = RootMeanSquare(width), GroupedAttention(width, heads, kv_heads)
        self.ffn_norm, self.feed_forward = RootMeanSquare(width), GatedFeedForward(width)

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class HalfWayHouse(nn.Module):
    def __init__(self, vocab_size, context_length, d_model, n_layers, n_heads):
        super().__init__()
        self.context_length = context_length
        self.tok_embeddings = nn.Embedding(vocab_size, d_model)
        self.layers = nn.ModuleList(Block(d_model, n_heads, 2) for _ in range(n_layers))
        self.norm = RootMeanSquare(d_model)
        self.output = nn.Linear(d_model, vocab_size, bias=False)
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                residual = name.endswith(("wo.weight", "w2.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * n_layers) if residual else 0.02)

    def forward(self, ids):
        if ids.shape[1] > self.context_length:
            raise ValueError(f"{ids.shape[1]} tokens, at most {self.context_length}")
        x = self.tok_embeddings(ids)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))
