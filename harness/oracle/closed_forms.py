"""Closed forms of GPT-2: parameter counts, the initial loss, and the growth of the residual stream."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.core.sizes import Size


def parameter_count(size: Size, *, tied: bool = True, bias: bool = True) -> int:
    """Return V·C + T·C + L·(12C² + 13C) + 2C, and V·C more if the head is untied; derived from the published shapes."""
    V, T, L, C = size.vocab_size, size.context, size.layers, size.width
    biases = L * 11 * C + C  # per block: 3C + C + 4C + C of the linears, 2C of the norms; C of ln_f
    return V * C + T * C + L * (12 * C * C + 13 * C) + 2 * C + (0 if tied else V * C) - (0 if bias else biases)


def cause_of_count(size: Size, count: int) -> str | None:
    """Return the known cause of a wrong parameter count; None if the count is right or its cause is unknown."""
    right, C = parameter_count(size), size.width
    causes = {
        right + size.vocab_size * C: "an untied head: lm_head has a matrix of its own (V·C more)",
        parameter_count(size, bias=False): "no biases, in the linear layers and in the norms",
        right - size.layers * 9 * C: "no biases in the linear layers",
        right - size.layers * 3 * C: "no bias in the query, key and value projections",
        right - size.context * C: "no learned positions (or counted without them, as nanoGPT prints it)",
        right + (size.vocab_size // 64 * 64 + 64 - size.vocab_size) * C: "a vocabulary padded to a multiple of 64",
        right + size.vocab_size: "a bias in the head",
        right - 2 * C: "no final norm",
        right - size.layers * 2 * C: "one norm a block instead of two",
        right - (size.layers - 1) * (12 * C * C + 13 * C): "all blocks are one module (`[Block()] * n`)",
        right - (12 * C * C + 13 * C): "one block too few",
        right + (12 * C * C + 13 * C): "one block too many",
        right - size.layers * (12 * C * C + 13 * C): "no blocks: they are in a plain list, and so not registered",
        right + size.layers * size.context**2: "causal masks registered as parameters, one a block",
    }
    return None if count == right else causes.get(count)


def initial_loss(size: Size, *, std: float = 0.02) -> float:
    """Return ln V + s²/2 nats, where s = std·sqrt(C).

    At initialisation the logits are N(0, s²), because the rows of ln_f's output have length sqrt(C).
    """
    return math.log(size.vocab_size) + std**2 * size.width / 2


# Standard deviations of the weights of each recipe that the lessons compare, from the fan-in and the depth:
# embeddings, linear layers, residual projections, biases of the linear layers.
def recipe_stds(recipe: str, *, fan_in: int, layers: int) -> tuple[float, float, float, float]:
    """Return the standard deviations (embedding, linear, residual, bias) of an initialisation recipe."""
    uniform = 1 / math.sqrt(3 * fan_in)  # U(-1/sqrt(n), 1/sqrt(n)), nn.Linear's default
    kaiming = math.sqrt(2 / fan_in)
    return {
        "gpt2": (0.02, 0.02, 0.02 / math.sqrt(2 * layers), 0.0),
        "unscaled": (0.02, 0.02, 0.02, 0.0),
        "pytorch": (1.0, uniform, uniform, uniform),
        "kaiming": (0.02, kaiming, kaiming, 0.0),
    }[recipe]


def residual_std(size: Size, recipe: str, *, stream_std: float | None, length: int) -> list[float]:
    """Return the predicted std of the residual stream before the first block and after each block.

    This is the mean-field recursion of the stream's variance q and of its covariance c between positions of one row.
    Random weights are independent of their inputs, so each branch adds its own variance. Attention averages over the
    positions that it sees: the average shrinks the part in which positions differ, and not the part that they share.

    Args:
        size: The sizes of the model.
        recipe: The initialisation, a name of `recipe_stds`.
        stream_std: The std of a normal stream that is the input of the blocks; None for the sum of the embeddings.
        length: The number of tokens in a row.
    """
    C, L = size.width, size.layers
    embedding, linear, residual, bias = recipe_stds(recipe, fan_in=C, layers=L)
    _, _, wide_residual, wide_bias = recipe_stds(recipe, fan_in=4 * C, layers=L)
    q, c = (stream_std**2 if stream_std is not None else 2 * embedding**2), 0.0
    stds = [math.sqrt(q)]
    for layer in range(L):
        own, shared = _projected(q, c, gain=C * linear**2, bias=bias)
        attended = _attended(own, shared, length=length, seed=layer)
        q += attended[0] * C * residual**2 + bias**2
        c += attended[1] * C * residual**2 + bias**2
        activated = _gelu_moments(*_projected(q, c, gain=C * linear**2, bias=bias))
        q += activated[0] * 4 * C * wide_residual**2 + wide_bias**2
        c += activated[1] * 4 * C * wide_residual**2 + wide_bias**2
        stds.append(math.sqrt(q))
    return stds


def _projected(q: float, c: float, *, gain: float, bias: float) -> tuple[float, float]:
    """Return variance, and covariance between positions, of one channel after LayerNorm and a random linear layer."""
    normed = q / (q + 1e-5)
    return gain * normed + bias**2, gain * normed * c / q + bias**2


def _attended(own: float, shared: float, *, length: int, seed: int) -> tuple[float, float]:
    """Return the same two after causal attention with random queries and keys, averaged over the positions of a row."""
    generator = torch.Generator().manual_seed(seed)
    # The part that all keys share adds the same to every score of a row, and the softmax does not depend on it.
    spread = math.sqrt(own * (own - shared))
    alike = math.sqrt(max(shared, 0.0) / own)  # similar queries have similar scores
    draws = 8
    common = torch.randn(draws, 1, length, generator=generator)
    each = torch.randn(draws, length, length, generator=generator)
    scores = spread * (alike * common + math.sqrt(1 - alike**2) * each)
    past = torch.ones(length, length).tril().bool()
    weights = scores.masked_fill(~past, -math.inf).softmax(-1)
    overlap = (weights @ weights.mT).mean(0)
    same = float(overlap.diagonal().mean())
    other = float((overlap.sum() - overlap.diagonal().sum()) / (length * (length - 1)))
    return own * same + shared * (1 - same), own * other + shared * (1 - other)


def _gelu_moments(own: float, shared: float) -> tuple[float, float]:
    """Return E[gelu(x)²] and E[gelu(x) gelu(y)] for x, y ~ N(0, own) with covariance `shared`, on a grid."""
    z = torch.linspace(-6, 6, 241, dtype=torch.float64)
    p = torch.exp(-(z**2) / 2)
    p /= p.sum()
    rho = shared / own
    x = math.sqrt(own) * z
    y = math.sqrt(own) * (rho * z[:, None] + math.sqrt(1 - rho**2) * z[None, :])
    pair = _gelu(x)[:, None] * _gelu(y) * p[:, None] * p[None, :]
    return float((_gelu(x) ** 2 * p).sum()), float(pair.sum())


def _gelu(x: Tensor) -> Tensor:
    return torch.nn.functional.gelu(x, approximate="tanh")
