"""What a layer of experts does with each token, read off its outputs: the gate of every expert, and what is left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.core.sizes import SIZES
from harness.oracle import model_cache
from harness.oracle.expert_gates import CONVENTIONS, RENORMALISED
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.protocols import MixesExperts

# Relative, in float64. Measured: gates and outputs of right programs (seven, of three seeds) are within 2e-15; those of
# the faults are off by 0.25 or more, and an epsilon of 1e-6 in the sum of the gates by 1e-6.
EXACT = 1e-9
ROWS, LENGTH = 3, 20  # of the usual input: with 6 experts each is chosen some 20 times
NO_CONVENTION = "none"


@dataclass(frozen=True)
class Mixture:
    """The tokens (N) of one call: the router's logits (N, E), the gates (N, E) and what they leave, relative (N)."""

    logits: Tensor
    gates: Tensor
    left: Tensor
    outputs: Tensor  # (N, C, E), of each expert alone
    y: Tensor  # (N, C), without the shared experts

    @property
    def used(self) -> Tensor:
        """True for the experts that take part in a token's output, (N, E)."""
        return self.gates.abs() > EXACT

    @property
    def explained(self) -> Tensor:
        """True for the tokens whose output is a sum of their experts' outputs, (N)."""
        return self.left < EXACT


def layer_of(
    subject: MixesExperts,
    size: str,
    *,
    experts: int,
    per_token: int,
    capacity_factor: float | None = None,
    own: bool = False,
) -> ExpertLayer:
    """Return the subject's layer in float64, from the cache if the last check used the same; `own` is a new one."""

    def make() -> ExpertLayer:
        return subject.build_experts(
            SIZES[size], experts=experts, per_token=per_token, capacity_factor=capacity_factor, seed=0
        )

    if own:
        return make()
    key = ("experts", subject, size, experts, per_token, capacity_factor)
    return model_cache.cached(key, make)


def tokens(layer: ExpertLayer, *, rows: int = ROWS, length: int = LENGTH, seed: int = 0) -> Tensor:
    """Return normal inputs (B, T, C) in float64, as a LayerNorm gives them."""
    generator = torch.Generator().manual_seed(seeded(seed) + 17)
    return torch.randn(rows, length, layer.width, generator=generator, dtype=torch.float64)


@torch.no_grad()
def mixture(layer: ExpertLayer, x: Tensor) -> Mixture:
    """Return the gates that explain the layer's outputs for `x` best, by least squares over all experts alone.

    There are fewer experts than channels, so that the gates are unique, and an output that is no sum leaves something.
    """
    if layer.experts >= layer.width:
        raise MissingAbility(f"{layer.experts} experts of {layer.width} channels cannot be told apart by their outputs")
    y = layer(x).reshape(-1, layer.width) - layer.shared_output(x)  # (N, C)
    outputs = torch.stack([layer.expert_output(number, x) for number in range(layer.experts)], dim=-1)  # (N, C, E)
    gates = torch.linalg.lstsq(outputs, y[..., None]).solution  # (N, E, 1)
    scale = outputs.norm(dim=1).mean()
    left = (outputs @ gates - y[..., None]).norm(dim=(1, 2)) / scale
    return Mixture(layer.router_logits(x), gates[..., 0], left, outputs, y)


def convention_of(layer: ExpertLayer, found: Mixture, k: int) -> tuple[str, Tensor]:
    """Return the convention that fits the gates of the most tokens, and for which tokens it does, (N).

    Where the layer says that it renormalises, only conventions that do are meant.
    """
    fits = {
        name: _same(found.gates, gates(found.logits, k)) & found.explained
        for name, gates in CONVENTIONS.items()
        if name in RENORMALISED or not layer.says_that_it_renormalises
    }
    name = max(fits, key=lambda each: int(fits[each].sum()))
    return name, fits[name]


def with_epsilon(found: Mixture, k: int) -> float | None:
    """Return the epsilon that is added to the sum by which the probabilities are divided; None if there is none.

    It is the same for every token, and small: gates then add up to a little less than 1.
    """
    probabilities = found.logits.softmax(-1)
    used = CONVENTIONS["softmax over all, not renormalised"](found.logits, k)
    total = used.sum(-1, keepdim=True)
    best = probabilities.argmax(-1, keepdim=True)
    epsilon = probabilities.gather(-1, best) / found.gates.gather(-1, best) - total
    value = float(epsilon.median())
    fits = 0 < value < 1e-3 and bool(found.explained.all()) and bool(_same(found.gates, used / (total + value)).all())
    return value if fits else None


def _same(found: Tensor, expected: Tensor) -> Tensor:
    return (found - expected).abs().amax(dim=-1) < EXACT
