"""Initialisation: each recipe names the initializer of every family of parameters."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

Initializer = Callable[[Tensor, int, torch.Generator | None], object]
"""Fills a tensor in place; takes the tensor, the fan-in of its layer, and the generator (None: the global one)."""


def normal(std: float) -> Initializer:
    """Return the initializer that draws from N(0, std²)."""
    return lambda tensor, fan_in, generator: tensor.normal_(0.0, std, generator=generator)


def kaiming_normal(tensor: Tensor, fan_in: int, generator: torch.Generator | None) -> object:
    """Draw from N(0, 2 / fan_in), derived for ReLU networks (He et al. 2015)."""
    return tensor.normal_(0.0, math.sqrt(2 / fan_in), generator=generator)


def uniform_fan_in(tensor: Tensor, fan_in: int, generator: torch.Generator | None) -> object:
    """Draw from U(-1/√fan_in, 1/√fan_in), as nn.Linear does for its weight and its bias."""
    bound = 1 / math.sqrt(fan_in)
    return tensor.uniform_(-bound, bound, generator=generator)


def zeros(tensor: Tensor, fan_in: int, generator: torch.Generator | None) -> object:
    """Set all values to zero."""
    return tensor.zero_()


@dataclass(frozen=True)
class Recipe:
    """The initializer of each family. Gains of LayerNorm always start at one and their biases at zero."""

    embedding: Initializer
    linear: Initializer
    residual: Callable[[int], Initializer]
    """From the number of layers to the initializer of both c_proj, which write into the residual stream."""
    bias: Initializer


RECIPES: dict[str, Recipe] = {
    # Radford et al. 2019: 2L branches add up in the stream, so each starts smaller by 1/√(2L).
    # The original code draws wpe at 0.01; Hugging Face and later implementations at 0.02, as here.
    "gpt2": Recipe(normal(0.02), normal(0.02), lambda layers: normal(0.02 / math.sqrt(2 * layers)), zeros),
    "unscaled": Recipe(normal(0.02), normal(0.02), lambda layers: normal(0.02), zeros),
    # PyTorch's own defaults of each layer; a tied head then has the embedding's N(0, 1).
    "pytorch": Recipe(normal(1.0), uniform_fan_in, lambda layers: uniform_fan_in, uniform_fan_in),
    "kaiming": Recipe(normal(0.02), kaiming_normal, lambda layers: kaiming_normal, zeros),
}

RESIDUAL = "c_proj"  # the last part of the name of every layer that writes into the residual stream


@torch.no_grad()
def initialise(model: nn.Module, recipe: Recipe, *, n_layer: int, generator: torch.Generator | None) -> None:
    """Fill every parameter of `model` once, in the order of its modules.

    With a generator the global random state is neither read nor changed; with None it is used.
    A tied head is the embedding, which comes first; it is not drawn again.
    """
    filled: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            nn.init.ones_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            recipe.embedding(module.weight, module.embedding_dim, generator)
        elif isinstance(module, nn.Linear):
            initializer = recipe.residual(n_layer) if name.endswith(RESIDUAL) else recipe.linear
            if id(module.weight) not in filled:
                initializer(module.weight, module.in_features, generator)
            if module.bias is not None:
                recipe.bias(module.bias, module.in_features, generator)
        filled.update(id(parameter) for parameter in module.parameters(recurse=False))
