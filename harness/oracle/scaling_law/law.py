"""A scaling law L(N, D) = E + A/N^α + B/D^β, and what follows from it in closed form.

Hoffmann et al. 2022, "Training Compute-Optimal Large Language Models", section 3.3 and equation 4.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

FLOPS_PER_WEIGHT = 6  # of training on one token: 2 in the forward pass, 4 in the backward one (Kaplan et al. 2020)
NAMES = ("E", "A", "B", "alpha", "beta")


def compute(parameters: float, tokens: float) -> float:
    """Return the FLOPs of training, C = 6·N·D."""
    return FLOPS_PER_WEIGHT * parameters * tokens


@dataclass(frozen=True)
class Law:
    """The loss in nats after training N parameters on D tokens: E is what no model and no data can remove."""

    E: float
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, parameters: Tensor, tokens: Tensor) -> Tensor:
        """Return E + A/N^α + B/D^β, of the shape of `parameters` and `tokens`."""
        return self.E + self.A * parameters**-self.alpha + self.B * tokens**-self.beta

    @property
    def size_exponent(self) -> float:
        """The exponent a of N_opt ~ C^a: β / (α + β). It is β's share: what data does slowly, size must do."""
        return self.beta / (self.alpha + self.beta)

    @property
    def data_exponent(self) -> float:
        """The exponent b of D_opt ~ C^b: α / (α + β)."""
        return 1 - self.size_exponent

    @property
    def loss_exponent(self) -> float:
        """The exponent of L_opt - E ~ C^-γ, γ = αβ / (α + β)."""
        return self.alpha * self.size_exponent

    def optimal_parameters(self, flops: float) -> float:
        """Return N_opt = G·(C/6)^a with G = (αA / βB)^(1 / (α + β)), the minimum of L along 6·N·D = C."""
        scale = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        return float(scale * (flops / FLOPS_PER_WEIGHT) ** self.size_exponent)

    def optimal_tokens(self, flops: float) -> float:
        """Return D_opt = C / (6·N_opt)."""
        return flops / (FLOPS_PER_WEIGHT * self.optimal_parameters(flops))

    def optimal_loss(self, flops: float) -> float:
        """Return the loss at N_opt and D_opt."""
        N, D = self.optimal_parameters(flops), self.optimal_tokens(flops)
        return float(self.E + self.A * N**-self.alpha + self.B * D**-self.beta)


# As published, for tables whose truth is known.
HOFFMANN = Law(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al. 2022, equation 10
BESIROGLU = Law(E=1.8172, A=482.01, B=2085.43, alpha=0.3478, beta=0.3658)  # Besiroglu et al. 2024, table 1
