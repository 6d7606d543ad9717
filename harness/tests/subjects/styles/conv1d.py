"""Own Conv1D layers, an answer with attributes, a cache that comes back: transformers' GPT-2, seen from outside."""

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional as F


class Config:
    n_positions = 1024
    vocab_size = 50257
    n_embd = 768
    n_layer = 12
    n_head = 12
    layer_norm_epsilon = 1e-5


class Conv1D(nn.Module):
    def __init__(self, nf, nx):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(nx, nf) * 0.02), nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(*x.shape[:-1], -1)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.c_attn, self.c_proj = Conv1D(3 * config.n_embd, config.n_embd), Conv1D(config.n_embd, config.n_embd)
        self.heads = config.n_head

    def forward(self, x, past):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.c_attn(x).split(c, dim=2))
        if past is not None:
            k, v = torch.cat((past[0], k), dim=2), torch.cat((past[1], v), dim=2)
        allowed = torch.ones(k.size(2), k.size(2), dtype=torch.bool, device=x.device).tril()[-t:]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=allowed)
        return self.c_proj(mixed.transpose(1, 2).reshape(b, t, c)), (k, v)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)
        self.mlp = nn.Sequential()
        self.mlp.add_module("c_fc", Conv1D(4 * config.n_embd, config.n_embd))
        self.mlp.add_module("act", nn.GELU("tanh"))
        self.mlp.add_module("c_proj", Conv1D(config.n_embd, 4 * config.n_embd))

    def forward(self, x, past=None):
        mixed, present = self.attn(self.ln_1(x), past)
        x = x + mixed
        return x + self.mlp(self.ln_2(x)), present


class Model(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList([Block(config) for _ in range(config.n_layer)])
        self.ln_f = nn.LayerNorm(config.n_embd, config.layer_norm_epsilon)


class LMHead(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.transformer = Model(config)

    def forward(self, input_ids, past_key_values=None, labels=None, use_cache=False):
        t, start = self.transformer, 0 if past_key_values is None else past_key_values[0][0].size(2)
        positions = torch.arange(start, start + input_ids.size(1), device=input_ids.device)
        x, presents = t.wte(input_ids) + t.wpe(positions), []
        for i, block in enumerate(t.h):
            x, present = block(x, None if past_key_values is None else past_key_values[i])
            presents.append(present)
        logits, loss = F.linear(t.ln_f(x), t.wte.weight), None
        if labels is not None:  # shifted here, as Hugging Face does
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        return SimpleNamespace(logits=logits, loss=loss, past_key_values=presents if use_cache else None)
