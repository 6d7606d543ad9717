"""Probe weights: seeded state dicts under the published names that make every parameter matter; and GPT-2's own."""

from __future__ import annotations

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import HarnessError, MissingResource
from harness.core.originals import with_originals
from harness.core.resources import pretrained_directory
from harness.core.seeds import seeded
from harness.core.sizes import SIZES, Size
from harness.oracle.declared import declared_gpt2
from harness.subjects.weight_map import family, published_shapes

Weights = Literal["probe", "extreme", "standard", "pretrained"]
State = dict[str, Tensor]


def state(size: str, weights: Weights) -> State:
    """Return the published state dict of one kind: float32, in Conv1D orientation. Do not write into it: it is shared.

    Args:
        size: The name of a size.
        weights: `probe` and `extreme` make every parameter matter, `standard` is GPT-2's initialisation, and
            `pretrained` are the released weights of 124M. All but the last are seeded.

    While a subject that declares deviations is judged, the names and shapes are those of the declared GPT-2.
    """
    if weights == "pretrained":
        if _shapes(SIZES[size]) != published_shapes(SIZES[size]):
            raise MissingResource("GPT-2's released weights have other shapes than the declared GPT-2")
        return _pretrained()
    return state_of(SIZES[size], weights)


def state_of(size: Size, weights: Literal["probe", "extreme", "standard"]) -> State:
    """Return the seeded state dict of one kind, as `state`, at a size that has no name."""
    return _drawn(size, weights, tuple(_shapes(size).items()), seeded(0))


def _shapes(size: Size) -> Mapping[str, tuple[int, ...]]:
    gpt2 = declared_gpt2()
    return published_shapes(size) if gpt2 is None else gpt2.shapes(size)


@functools.lru_cache(maxsize=1)
@with_originals
def _drawn(size: Size, weights: str, shapes: tuple[tuple[str, tuple[int, ...]], ...], seed: int) -> State:
    make = {"probe": _probe, "extreme": _extreme, "standard": _standard}[weights]
    with torch._C.DisableTorchFunction():  # a float64 pass of a subject makes float64 of every float32
        return {name: make(name, shape, size) for name, shape in shapes}


def _pretrained() -> State:
    from safetensors.torch import load_file  # only the pretrained tier needs it

    file = pretrained_directory() / "model.safetensors"
    try:
        loaded = load_file(file)
    except Exception as error:  # safetensors has errors of its own for a damaged file
        raise HarnessError(f"{file}: {describe_error(error)}; --pretrained takes the released GPT-2") from None
    named = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in loaded.items()}
    for name, shape in published_shapes(SIZES["124M"]).items():
        if name not in named or tuple(named[name].shape) != shape:
            found = f"of shape {tuple(named[name].shape)}" if name in named else "not there"
            raise HarnessError(
                f"{file}: {name} is {found}, expected {shape}: --pretrained takes GPT-2 with 124M parameters"
            )
    return {name: named[name].float() for name in published_shapes(SIZES["124M"])}


def _normal(name: str, shape: tuple[int, ...]) -> Tensor:
    # The seed contains the name, so that a tensor does not depend on which others were drawn before it. CRC-32, because
    # Python's own hash of a string differs from process to process. The dtype is stated: float64, which is torch's
    # default inside a subject's float64 passes, has other numbers.
    seed = zlib.crc32(name.encode(), seeded(0))
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)


def _probe(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """Return weights under which every parameter changes the output.

    Biases and gains are random. Attention is sharp: its scores have std 2, where GPT-2's initialisation gives 0.1 and
    almost uniform attention. No matrix is symmetric. The embeddings are so small that the norm's epsilon matters.
    """
    noise = _normal(name, shape)
    kind = family(name)
    if kind.startswith("ln_") and kind.endswith("weight"):
        return 1.0 + 0.3 * noise
    if kind.endswith("bias"):
        return 0.2 * noise
    if kind == "attn.c_attn.weight":
        noise[:, : _values_at(shape, size)] *= 1.4  # queries and keys, for scores of std 1.4² = 2; values stay at std 1
        return noise / math.sqrt(size.width)
    if kind in ("wte.weight", "wpe.weight", "lm_head.weight"):
        return noise * 1.5 / math.sqrt(size.width)
    gain = 1.2 if kind in ("mlp.c_fc.weight", "mlp.c_gate.weight") else 0.6
    return noise * gain / math.sqrt(shape[0])


def _extreme(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """Return probe weights with numbers so large that clamps, caps and fills take effect.

    Scores have std 12 and mean -100. The mean is the same for all keys, so the softmax does not depend on it; but a
    mask fill of -50 is above the scores, and a softmax that does not subtract the largest score underflows. The scores
    are no larger, because a mask applied after the softmax and renormalised, which is correct, would underflow as well.
    Activations have std 12, logits std 30.
    """
    tensor = _probe(name, shape, size)
    kind, C, D = family(name), size.width, size.head_width
    if kind.startswith("attn.c_attn"):
        values = _values_at(shape, size)
        tensor[..., :values] *= 2.5
        shift = math.sqrt(
            100 * math.sqrt(D)
        )  # one channel of each head contributes only this: -shift² / sqrt(D) = -100
        for start, stop, sign in ((0, C, 1.0), (C, values, -1.0)):
            tensor[..., start:stop:D] = sign * shift if kind.endswith("bias") else 0.0
    return tensor * {"mlp.c_fc.weight": 10.0, "ln_f.weight": 20.0}.get(kind, 1.0)


def _values_at(shape: tuple[int, ...], size: Size) -> int:
    """Return the column of the fused projection at which the values begin, after the queries and the keys."""
    return (shape[-1] + size.width) // 2


def _standard(name: str, shape: tuple[int, ...], size: Size) -> Tensor:
    """Return GPT-2's initialisation (Radford et al. 2019).

    Weights have std 0.02, residual projections 0.02/sqrt(2L). Gains are 1 and biases 0.
    """
    kind = family(name)
    if kind.endswith("bias"):
        return torch.zeros(shape, dtype=torch.float32)
    if kind.startswith("ln_"):
        return torch.ones(shape, dtype=torch.float32)
    std = 0.02 / math.sqrt(2 * size.layers) if kind.endswith("c_proj.weight") else 0.02
    return std * _normal(name, shape)
