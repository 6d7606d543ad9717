"""Every head has matrices of its own, multiplied by einsum, all of them bare parameters: as TransformerLens does."""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F


@dataclass
class Cfg:
    d_model: int = 768
    d_vocab: int = 50257
    n_ctx: int = 1024
    d_head: int = 64
    d_mlp: int = 3072
    n_heads: int = 12
    n_layers: int = 12
    layer_norm_eps: float = 1e-5


def empty(*shape):
    return nn.Parameter(torch.randn(shape) * 0.02)


class LayerNorm(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.eps, self.w, self.b = cfg.layer_norm_eps, empty(cfg.d_model), empty(cfg.d_model)

    def forward(self, residual):
        residual = residual - residual.mean(-1, keepdim=True)
        scale = (residual.pow(2).mean(-1, keepdim=True) + self.eps).sqrt()
        return residual / scale * self.w + self.b


class Embed(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_E = empty(cfg.d_vocab, cfg.d_model)

    def forward(self, tokens):
        return self.W_E[tokens]


class PosEmbed(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_pos = empty(cfg.n_ctx, cfg.d_model)

    def forward(self, tokens):
        return self.W_pos[: tokens.size(1)].unsqueeze(0).expand(tokens.size(0), -1, -1)


class Attention(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.cfg = cfg
        self.W_Q, self.W_K, self.W_V = (empty(cfg.n_heads, cfg.d_model, cfg.d_head) for _ in range(3))
        self.W_O = empty(cfg.n_heads, cfg.d_head, cfg.d_model)
        self.b_Q, self.b_K, self.b_V = (empty(cfg.n_heads, cfg.d_head) for _ in range(3))
        self.b_O = empty(cfg.d_model)

    def forward(self, x):
        q, k, v = (
            torch.einsum("bpd,hde->bphe", x, w) + b
            for w, b in ((self.W_Q, self.b_Q), (self.W_K, self.b_K), (self.W_V, self.b_V))
        )
        scores = torch.einsum("bqhe,bkhe->bhqk", q, k) / math.sqrt(self.cfg.d_head)
        future = torch.triu(torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device), 1)
        pattern = scores.masked_fill(future, -torch.inf).softmax(-1)
        z = torch.einsum("bhqk,bkhe->bqhe", pattern, v)
        return torch.einsum("bqhe,hed->bqd", z, self.W_O) + self.b_O


class MLP(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.W_in, self.b_in = empty(cfg.d_model, cfg.d_mlp), empty(cfg.d_mlp)
        self.W_out, self.b_out = empty(cfg.d_mlp, cfg.d_model), empty(cfg.d_model)

    def forward(self, x):
        return F.gelu(x @ self.W_in + self.b_in, approximate="tanh") @ self.W_out + self.b_out


class TransformerBlock(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.ln1, self.attn, self.ln2, self.mlp = LayerNorm(cfg), Attention(cfg), LayerNorm(cfg), MLP(cfg)

    def forward(self, x):
        x = x + self.attn(self.ln1(x))
        return x + self.mlp(self.ln2(x))


class Transformer(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        self.embed, self.pos_embed = Embed(cfg), PosEmbed(cfg)
        self.blocks = nn.ModuleList([TransformerBlock(cfg) for _ in range(cfg.n_layers)])
        self.ln_final = LayerNorm(cfg)

    def forward(self, tokens):
        x = self.embed(tokens) + self.pos_embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.ln_final(x) @ self.embed.W_E.T
