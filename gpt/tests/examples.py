"""Small models for the tests, in which every parameter affects the output."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from gpt import GPT, PRESETS
from gpt.weights import to_huggingface


def debug(**changes: Any) -> GPT:
    """Return a model of the debug size in eval mode, with every parameter random."""
    return excited(GPT(replace(PRESETS["debug"], **changes), seed=0).eval())


def excited(model: nn.Module, seed: int = 1) -> Any:
    """Fill every parameter with random values and return the model.

    GPT-2's own initialisation sets gains to one and biases to zero, which hides half of the bugs.
    """
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.empty_like(parameter).normal_(0.0, 0.2, generator=generator)
            parameter.copy_(noise + 1.0 if "ln_" in name and name.endswith("weight") else noise)
    return model


def ids(batch: int = 2, length: int = 32, *, seed: int = 0, vocab: int = 211) -> Tensor:
    """Return random token ids (batch, length) of the debug vocabulary."""
    return torch.randint(vocab, (batch, length), generator=torch.Generator().manual_seed(seed))


def as_attention(model: GPT, attention: str) -> GPT:
    """Return a model with the same weights and another form of attention."""
    other = GPT(replace(model.config, attention=attention), seed=9).eval().to(model.lm_head.weight.dtype)
    other.load_huggingface(to_huggingface(model))
    return other
