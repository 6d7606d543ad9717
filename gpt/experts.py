"""A mixture of experts in place of the feed-forward network: each token is computed by k of E networks.

The letters: N tokens (those of all sequences), C channels, E experts, k experts a token.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gpt.config import GPTConfig
from gpt.feed_forward import FeedForward
from gpt.linear import Linear


@dataclass(frozen=True)
class Routing:
    """Where the router of one layer sent N tokens."""

    logits: Tensor
    """(N, E), the router's score of each expert, at least in float32."""
    chosen: Tensor
    """(N, k), the experts of each token, the best one first; no expert twice."""
    gates: Tensor
    """(N, k), the weights of their outputs."""
    kept: Tensor
    """(N, k), False where a token was dropped, because its expert was full."""

    @property
    def counts(self) -> Tensor:
        """How many tokens chose each expert, (E), those that were dropped included."""
        return torch.bincount(self.chosen.flatten(), minlength=self.logits.size(-1))

    @property
    def shares(self) -> Tensor:
        """The share of all choices that each expert has, (E); they sum to 1."""
        return self.counts / self.chosen.numel()

    @property
    def dropped(self) -> Tensor:
        """How many choices were dropped, of N k."""
        return (~self.kept).sum()


def balance_loss(routings: Sequence[Routing]) -> Tensor:
    """Return E Σ f_i P_i, the mean over the layers: 1 for even loads, up to E if one expert has them all.

    f_i is the share of the choices that expert i has, and P_i its mean probability (Fedus et al. 2021, equation 4).
    f is a count, so the gradient comes through P alone.
    """
    losses = []
    for routing in routings:
        probabilities = routing.logits.softmax(dim=-1).mean(dim=0)  # (N, E) -> (E)
        losses.append(routing.logits.size(-1) * (routing.shares * probabilities).sum())
    return torch.stack(losses).mean()


class MixtureOfExperts(nn.Module):
    """E feed-forward networks and a router: y = Σ g_i E_i(x) over the k experts with the largest logits.

    The gates g are the softmax over the k logits, as in Mixtral (Jiang et al. 2024), so that equal experts are the
    dense network. With k = 1 that would be the constant 1, through which no gradient reaches the router: the gate is
    then the probability among all experts, as in the Switch Transformer (Fedus et al. 2021).

    With a capacity factor f, an expert computes at most ceil(f k N / E) tokens of a batch. First choices come before
    second ones, and earlier tokens before later ones. What does not fit is dropped: its part of the sum is 0.
    A capacity makes a token's output depend on the other tokens of its batch; without one it does not.
    """

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.per_token = config.experts_per_token
        self.capacity_factor = config.capacity_factor
        self.router = Linear(config.n_embd, config.n_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(config) for _ in range(config.n_experts))

    def forward(self, x: Tensor) -> tuple[Tensor, Routing]:
        """(B, T, C) -> (B, T, C), and where the tokens were sent."""
        tokens = x.reshape(-1, x.size(-1))  # (B, T, C) -> (N, C)
        routing = self.route(tokens)
        y = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            # An expert without tokens computes zero rows: its gradient is then 0 and not missing, on every rank.
            rows, slots = (routing.kept & (routing.chosen == number)).nonzero(as_tuple=True)
            out = routing.gates[rows, slots, None] * expert(tokens[rows])  # (n, 1) * (n, C)
            y = y.index_add(0, rows, out.to(y.dtype))
        return y.view_as(x), routing

    def route(self, tokens: Tensor) -> Routing:
        """Return where each of the tokens (N, C) is sent."""
        logits = self.score(tokens)
        best, chosen = logits.topk(self.per_token, dim=-1)  # (N, E) -> 2 × (N, k)
        gates = best.softmax(dim=-1) if self.per_token > 1 else logits.softmax(dim=-1).gather(-1, chosen)
        return Routing(logits, chosen, gates, self.within_capacity(chosen))

    def score(self, tokens: Tensor) -> Tensor:
        """(N, C) -> (N, E), at least in float32: in 16 bits two experts may tie (Fedus et al. 2021, section 2.4)."""
        dtype = torch.promote_types(tokens.dtype, torch.float32)
        with torch.autocast(tokens.device.type, enabled=False):
            return F.linear(tokens.to(dtype), self.router.weight.to(dtype))

    def within_capacity(self, chosen: Tensor) -> Tensor:
        """Return which of the choices (N, k) fit into their expert, (N, k)."""
        if not self.capacity_factor:
            return torch.ones_like(chosen, dtype=torch.bool)
        N, k = chosen.shape
        E = len(self.experts)
        queue = F.one_hot(chosen.t().flatten(), E)  # (N, k) -> (k N, E): first choices of all tokens, then second ones
        place = (queue.cumsum(dim=0) * queue).sum(dim=-1)  # (k N): the place in the queue of its expert, from 1
        return (place <= capacity(N, k, E, self.capacity_factor)).view(k, N).t()


def capacity(tokens: int, per_token: int, experts: int, factor: float) -> int:
    """Return how many tokens an expert computes at most: its even share of all choices, times `factor`, rounded up."""
    return math.ceil(factor * per_token * tokens / experts)


def active_parameters(model: nn.Module) -> int:
    """Return how many parameters compute a token: all but those of the E - k experts that it is not sent to."""
    total = sum(parameter.numel() for parameter in model.parameters())
    for layer in model.modules():
        if isinstance(layer, MixtureOfExperts):
            one = sum(parameter.numel() for parameter in layer.experts[0].parameters())
            total -= (len(layer.experts) - layer.per_token) * one
    return total
