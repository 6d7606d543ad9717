"""Mixtures of experts in the styles that people write them in; each is right. The GPT is from elsewhere."""

from collections import namedtuple
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


def _routed(logits, k):
    probabilities = logits.softmax(-1)
    gates, index = probabilities.topk(k, dim=-1)
    return probabilities, gates / gates.sum(-1, keepdim=True), index


class Listed(nn.Module):
    """nanoGPT's manner: a config, a ModuleList, a mask for each expert; the loss is left in the module."""

    def __init__(self, config):
        super().__init__()
        self.top_k = config.top_k
        self.router = nn.Linear(config.n_embd, config.num_experts)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(config.n_embd, 100), nn.ReLU(), nn.Linear(100, config.n_embd))
            for _ in range(config.num_experts)
        )
        self.aux_loss = None

    def forward(self, x):
        probabilities, gates, index = _routed(self.router(x), self.top_k)
        out = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            mask = (index == number).any(-1)
            out[mask] += expert(x[mask]) * (gates * (index == number)).sum(-1)[mask][..., None]
        share = F.one_hot(index, len(self.experts)).sum(-2).double().flatten(0, 1).mean(0)
        self.aux_loss = 0.02 * len(self.experts) * (share * probabilities.flatten(0, 1).mean(0)).sum()
        return out


class Stacked(nn.Module):
    """Gated networks in bare tensors, (out, in), as in Mixtral's release; tokens (N, C) in, a tuple out."""

    def __init__(self, dim, num_experts=8, num_experts_per_tok=2, hidden_dim=None):
        super().__init__()
        hidden = hidden_dim or 80
        self.k = num_experts_per_tok
        self.gate = nn.Parameter(torch.randn(dim, num_experts))
        self.w1 = nn.Parameter(torch.randn(num_experts, hidden, dim))
        self.w3 = nn.Parameter(torch.randn(num_experts, hidden, dim))
        self.w2 = nn.Parameter(torch.randn(num_experts, dim, hidden))

    def forward(self, x):
        count, _ = x.shape
        logits = x @ self.gate
        _, gates, index = _routed(logits, self.k)
        out = torch.zeros_like(x)
        for slot in range(self.k):
            w1, w2, w3 = (w[index[:, slot]] for w in (self.w1, self.w2, self.w3))
            hidden = F.silu(torch.einsum("nhc,nc->nh", w1, x)) * torch.einsum("nhc,nc->nh", w3, x)
            out = out + gates[:, slot, None] * torch.einsum("nch,nh->nc", w2, hidden)
        assert len(out) == count
        return out, logits


class Bank(nn.Module):
    """All experts in one module, each with an activation of its own making: known by its call alone."""

    def __init__(self, width, n_exp):
        super().__init__()
        self.up = nn.Parameter(torch.randn(n_exp, width, 72))
        self.down = nn.Parameter(torch.randn(n_exp, 72, width))

    def forward(self, hidden_states, router_indices, routing_weights):
        out = torch.zeros_like(hidden_states)
        for slot in range(router_indices.size(1)):
            up, down = self.up[router_indices[:, slot]], self.down[router_indices[:, slot]]
            hidden = torch.einsum("nc,nch->nh", hidden_states, up).sin()
            out = out + routing_weights[:, slot, None] * torch.einsum("nh,nhc->nc", hidden, down)
        return out


class Banked(nn.Module):
    """Switch gates, which are not renormalised, and a shared expert with a gate of its own, as in Qwen's."""

    def __init__(self, width, n_exp, top_k):
        super().__init__()
        self.top_k = top_k
        self.router = nn.Linear(width, n_exp, bias=False)
        self.experts = Bank(width, n_exp)
        self.shared_expert = nn.Sequential(nn.Linear(width, 30), nn.Tanh(), nn.Linear(30, width))
        self.shared_expert_gate = nn.Linear(width, 1)

    def forward(self, x):
        flat = x.flatten(0, 1)
        gates, index = self.router(flat).float().softmax(-1).to(x.dtype).topk(self.top_k, dim=-1)
        out = self.experts(flat, index, gates) + self.shared_expert_gate(flat).sigmoid() * self.shared_expert(flat)
        return out.view_as(x)


Answer = namedtuple("Answer", "output l_aux")


class Noisy(nn.Module):
    """Shazeer's: noise in training, an epsilon in the sum, CV² of importance and load, a named tuple."""

    def __init__(self, input_size, output_size, num_experts, hidden_size, k=4):
        super().__init__()
        self.k = k
        self.w_gate = nn.Parameter(torch.zeros(input_size, num_experts))
        self.w_noise = nn.Parameter(torch.zeros(input_size, num_experts))
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(input_size, hidden_size), nn.GELU(), nn.Linear(hidden_size, output_size))
            for _ in range(num_experts)
        )

    def forward(self, x):
        logits = x @ self.w_gate
        if self.training:
            logits = logits + torch.randn_like(logits) * F.softplus(x @ self.w_noise)
        gates, index = logits.softmax(-1).topk(self.k, dim=-1)
        gates = torch.zeros_like(logits).scatter(-1, index, gates / (gates.sum(-1, keepdim=True) + 1e-6))
        dense = torch.stack([expert(x) for expert in self.experts], dim=-2)  # (B, T, E, C)
        importance, load = gates.flatten(0, 1).sum(0), (gates > 0).flatten(0, 1).sum(0).to(x.dtype)
        loss = sum(value.var() / value.mean() ** 2 for value in (importance, load))
        return Answer((gates[..., None] * dense).sum(-2), 0.1 * loss)


@dataclass
class Config:
    n_embd: int = 64
    num_experts: int = 4
    top_k: int = 1
    dropout: float = 0.0


class NoChoice(nn.Module):
    """The number of experts is fixed, and so is k."""

    def __init__(self, d_model):
        super().__init__()
        self.top_k = 2
        self.gate = nn.Linear(d_model, 3)
        self.experts = nn.ModuleList(nn.Linear(d_model, d_model) for _ in range(3))

    def forward(self, x):
        _, gates, index = _routed(self.gate(x), 2)
        dense = torch.stack([expert(x) for expert in self.experts], dim=-2)
        picked = dense.gather(-2, index[..., None].expand(*index.shape, x.size(-1)))
        return (gates[..., None] * picked).sum(-2)
