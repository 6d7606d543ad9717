"""A sparse mixture of experts beside a GPT, as people write it: tokens sorted by expert, weights in stacked tensors.

It is right; `experts.toml` changes its text.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

from harness.faults.specimen import GPT  # noqa: F401 - the subject; the layer is beside it


class SparseMoE(nn.Module):
    """Top-k routing over num_experts two-layer networks; forward returns the output and the balance loss."""

    def __init__(
        self,
        d_model,
        num_experts=8,
        top_k=2,
        d_ff=None,
        capacity_factor=None,
        noise_std=0.1,
        aux_loss_weight=0.01,
        norm_topk_prob=True,
    ):
        super().__init__()
        d_ff = d_ff or 4 * d_model
        self.num_experts = num_experts
        self.top_k = top_k
        self.capacity_factor = capacity_factor
        self.noise_std = noise_std
        self.aux_loss_weight = aux_loss_weight
        self.norm_topk_prob = norm_topk_prob
        self.gate = nn.Linear(d_model, num_experts, bias=False)
        self.w1 = nn.Parameter(torch.randn(num_experts, d_model, d_ff) / d_model**0.5)
        self.b1 = nn.Parameter(torch.zeros(num_experts, d_ff))
        self.w2 = nn.Parameter(torch.randn(num_experts, d_ff, d_model) / d_ff**0.5)
        self.b2 = nn.Parameter(torch.zeros(num_experts, d_model))

    def forward(self, x):
        """(B, T, C) -> (B, T, C), and the weighted balance loss."""
        flat = x.reshape(-1, x.size(-1))  # (N, C)
        logits = self.gate(flat)  # (N, E)
        if self.training:
            logits = logits + self.noise_std * torch.randn_like(logits)
        probabilities = logits.float().softmax(dim=-1)
        gates, index = probabilities.topk(self.top_k, dim=-1)  # (N, k)
        if self.norm_topk_prob:
            gates = gates / gates.sum(dim=-1, keepdim=True)
        loss = self.aux_loss_weight * self.balance(probabilities, index)

        owner = index.reshape(-1)  # (N k): the expert of each choice
        order = owner.argsort(stable=True)
        row = order // self.top_k
        weight = gates.reshape(-1)[order].to(x.dtype)
        counts = torch.bincount(owner, minlength=self.num_experts)
        out = torch.zeros_like(flat)
        start = 0
        for expert, count in enumerate(counts.tolist()):
            kept = start + min(count, self.capacity(flat.size(0)))
            rows = row[start:kept]
            result = self.compute(expert, flat[rows])
            out.index_add_(0, rows, result * weight[start:kept, None])
            start += count
        return out.view_as(x), loss

    def compute(self, expert, tokens):
        """One expert on its tokens, (n, C) -> (n, C)."""
        hidden = F.gelu(tokens @ self.w1[expert] + self.b1[expert], approximate="tanh")
        return hidden @ self.w2[expert] + self.b2[expert]

    def capacity(self, tokens):
        """How many tokens an expert computes at most."""
        if self.capacity_factor is None:
            return tokens
        return math.ceil(self.capacity_factor * self.top_k * tokens / self.num_experts)

    def balance(self, probabilities, index):
        """E times the sum of f P: the share of choices of each expert, and its mean probability."""
        share = F.one_hot(index, self.num_experts).sum(dim=1).float().mean(dim=0) / self.top_k
        mean = probabilities.mean(dim=0)
        return self.num_experts * (share * mean).sum()
