"""Seeded state dicts under the published names: weights that excite every parameter, and GPT-2's own start."""

from __future__ import annotations

import functools
import math
import zlib
from typing import Literal

import torch
from torch import Tensor

from harness.core.resources import pretrained_directory
from harness.core.sizes import SIZES, Size
from harness.subjects.weight_map import family, published_shapes

Weights = Literal["probe", "extreme", "standard", "pretrained"]
State = dict[str, Tensor]


def state(size: str, weights: Weights) -> State:
    """The published state dict of that kind, float32, Conv1D orientation. Shared: do not write into it."""
    return _pretrained() if weights == "pretrained" else _seeded(size, weights)


@functools.lru_cache(maxsize=1)
def _seeded(size: str, weights: str) -> State:
    make = {"probe": _probe, "extreme": _extreme, "standard": _standard}[weights]
    return {name: make(name, shape, SIZES[size]) for name, shape in published_shapes(SIZES[size]).items()}


def _pretrained() -> State:
    from safetensors.torch import load_file

    loaded = load_file(pretrained_directory() / "model.safetensors")
    named = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in loaded.items()}
    return {name: named[name].float() for name in published_shapes(SIZES["124M"])}


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    # Seeded by name, so that a tensor does not depend on which others were drawn before it.
    return torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def _probe(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """Weights under which no parameter is invisible.

    Biases and gains are random, attention is sharp (scores of std 2, where GPT-2's start has 0.1 and attends almost
    evenly), no matrix is symmetric, and the embeddings are small enough that the norm's epsilon shows.
    """
    noise = _normal(name, shape)
    kind = family(name)
    if kind.startswith("ln_") and kind.endswith("weight"):
        return 1.0 + 0.3 * noise
    if kind.endswith("bias"):
        return 0.2 * noise
    if kind == "attn.c_attn.weight":
        noise[:, : 2 * size.width] *= 1.4  # queries and keys; values stay at 1
        return noise / math.sqrt(size.width)
    if kind in ("wte.weight", "wpe.weight"):
        return noise * 1.5 / math.sqrt(size.width)
    gain = 1.2 if kind == "mlp.c_fc.weight" else 0.6
    return noise * gain / math.sqrt(shape[0])


def _extreme(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """The probe weights where clamps, caps and fills show that stay out of reach of small numbers.

    Scores of std 12 about -100, the same for all keys, which the softmax does not see: a mask of -50 is above them,
    and exp without the largest score underflows. No more, or what is masked after the softmax and normalised again
    would underflow as well. Activations of std 12, and logits of std 30.
    """
    tensor = _probe(name, shape, size)
    kind, C, D = family(name), size.width, size.head_width
    if kind.startswith("attn.c_attn"):
        tensor[..., : 2 * C] *= 2.5
        shift = math.sqrt(100 * math.sqrt(D))  # by one channel of each head that has nothing else
        for start, sign in ((0, 1.0), (C, -1.0)):
            tensor[..., start : start + C : D] = sign * shift if kind.endswith("bias") else 0.0
    return tensor * {"mlp.c_fc.weight": 10.0, "ln_f.weight": 20.0}.get(kind, 1.0)


def _standard(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """GPT-2's initialisation: std 0.02, residual projections 0.02/sqrt(2L), gains 1, biases 0 (Radford et al. 2019)."""
    kind = family(name)
    if kind.endswith("bias"):
        return torch.zeros(shape)
    if kind.startswith("ln_"):
        return torch.ones(shape)
    std = 0.02 / math.sqrt(2 * size.layers) if kind.endswith("c_proj.weight") else 0.02
    return std * _normal(name, shape)
