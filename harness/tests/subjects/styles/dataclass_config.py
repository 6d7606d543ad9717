"""A config dataclass beside the class, (logits, loss), the last position only without targets: as nanoGPT is used."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Shape:
    block_size: int = 1024
    vocab_size: int = 50304
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    dropout: float = 0.0
    bias: bool = False


class Norm(nn.Module):
    def __init__(self, width, bias):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x):
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.c_attn = nn.Linear(shape.n_embd, 3 * shape.n_embd, bias=shape.bias)
        self.c_proj = nn.Linear(shape.n_embd, shape.n_embd, bias=shape.bias)
        self.heads, self.rate = shape.n_head, shape.dropout

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (part.view(b, t, self.heads, -1).transpose(1, 2) for part in self.c_attn(x).split(c, dim=2))
        rate = self.rate if self.training else 0.0
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        return F.dropout(self.c_proj(mixed.transpose(1, 2).reshape(b, t, c)), self.rate, self.training)


class Layer(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.ln_1, self.ln_2 = Norm(shape.n_embd, shape.bias), Norm(shape.n_embd, shape.bias)
        self.attn = Attention(shape)
        self.mlp = nn.ModuleDict(
            {
                "c_fc": nn.Linear(shape.n_embd, 4 * shape.n_embd, bias=shape.bias),
                "c_proj": nn.Linear(4 * shape.n_embd, shape.n_embd, bias=shape.bias),
            }
        )
        self.rate = shape.dropout

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        inner = F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh")
        return x + F.dropout(self.mlp["c_proj"](inner), self.rate, self.training)


class GPT(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(shape.vocab_size, shape.n_embd),
                "wpe": nn.Embedding(shape.block_size, shape.n_embd),
                "h": nn.ModuleList([Layer(shape) for _ in range(shape.n_layer)]),
                "ln_f": Norm(shape.n_embd, shape.bias),
            }
        )
        self.lm_head = nn.Linear(shape.n_embd, shape.vocab_size, bias=False)
        self.transformer["wte"].weight = self.lm_head.weight

    def forward(self, idx, targets=None):
        if idx.size(1) > self.shape.block_size:
            raise ValueError(f"{idx.size(1)} tokens, but the block size is {self.shape.block_size}")
        x = self.transformer["wte"](idx) + self.transformer["wpe"](torch.arange(idx.size(1), device=idx.device))
        x = F.dropout(x, self.shape.dropout, self.training)
        for layer in self.transformer["h"]:
            x = layer(x)
        x = self.transformer["ln_f"](x)
        if targets is None:
            return self.lm_head(x[:, [-1]]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    @torch.no_grad()
    def generate(self, idx, max_new_tokens, temperature=1.0, top_k=None):
        for _ in range(max_new_tokens):
            logits, _ = self(idx[:, -self.shape.block_size :])
            logits = logits[:, -1] / temperature
            if top_k is not None:
                least = logits.topk(min(top_k, logits.size(-1))).values[:, [-1]]
                logits[logits < least] = -float("inf")
            idx = torch.cat((idx, torch.multinomial(logits.softmax(-1), 1)), dim=1)
        return idx
