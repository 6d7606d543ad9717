"""Variants of attention's two linear layers: c_attn for queries, keys and values, and c_proj for the output."""

from __future__ import annotations

from torch import Tensor

from harness.oracle.formula import At, Operation
from harness.oracle.variants.linear import linear_variants
from harness.oracle.variants.variant import Variant

QUERY, KEY, VALUE = 0, 1, 2  # which third of c_attn's output


def without_biases(*thirds: int) -> Operation:
    """Return c_attn without the bias of these thirds."""

    def qkv(at: At, x: Tensor) -> Tensor:
        bias = at["attn.c_attn.bias"].clone()
        bias.unflatten(0, (3, -1))[list(thirds)] = 0
        return x @ at["attn.c_attn.weight"] + bias

    return qkv


def transposed(third: int) -> Operation:
    """Return c_attn with the square weight of one third transposed."""

    def qkv(at: At, x: Tensor) -> Tensor:
        weight = at["attn.c_attn.weight"].clone()
        C = at.size.width
        weight[:, third * C : third * C + C] = weight[:, third * C : third * C + C].mT.clone()
        return x @ weight + at["attn.c_attn.bias"]

    return qkv


def all_transposed(at: At, x: Tensor) -> Tensor:
    """Compute c_attn with each third of its weight transposed."""
    blocks: Tensor = at["attn.c_attn.weight"].unflatten(1, (3, -1))  # (in, 3, out)
    return x @ blocks.permute(2, 1, 0).flatten(1) + at["attn.c_attn.bias"]


def reshaped(at: At, x: Tensor) -> Tensor:
    """Compute c_attn with its weight reshaped to (out, in) instead of transposed."""
    return x @ at["attn.c_attn.weight"].reshape(-1, at.size.width).mT + at["attn.c_attn.bias"]


def output_transposed(at: At, x: Tensor) -> Tensor:
    """Compute c_proj with its square weight transposed."""
    return x @ at["attn.c_proj.weight"].mT + at["attn.c_proj.bias"]


# at; x (B, T, C) -> (B, T, 3C)
QKV = (
    *linear_variants("attn.c_attn", "attn.qkv", bias_missing="qkv-bias-ignored"),
    Variant("qkv-bias-ignored", "attn.qkv", "the bias of the query is not added", without_biases(QUERY)),
    Variant("qkv-bias-ignored", "attn.qkv", "the bias of the value is not added", without_biases(VALUE)),
    Variant("qkv-bias-ignored", "attn.qkv", "the bias of the query and the key is not added", without_biases(QUERY, KEY)),
    Variant("qkv-bias-ignored", "attn.qkv", "the bias of the query and the value is not added", without_biases(QUERY, VALUE)),
    Variant("qkv-bias-ignored", "attn.qkv", "the bias of the key and the value is not added", without_biases(KEY, VALUE)),
    Variant("load-conv1d-square-not-transposed", "attn.qkv", "the query projection is transposed", transposed(QUERY)),
    Variant("load-conv1d-square-not-transposed", "attn.qkv", "the key projection is transposed", transposed(KEY)),
    Variant("load-conv1d-square-not-transposed", "attn.qkv", "the value projection is transposed", transposed(VALUE)),
    Variant("load-conv1d-square-not-transposed", "attn.qkv", "the query, key and value projections are transposed", all_transposed),
    Variant("load-conv1d-square-not-transposed", "attn.qkv", "the fused projection is reshaped instead of transposed", reshaped),
)  # fmt: skip

# at; x (B, T, C) -> (B, T, C)
OUTPUT = (
    Variant("attn-out-proj-skipped", "attn.c_proj", "the output projection is not applied", lambda at, x: x),
    # The forward pass cannot say whether the weight was loaded or applied transposed.
    Variant("load-conv1d-square-not-transposed", "attn.c_proj", "the weight of attn.c_proj is transposed (it is square, so every shape fits)", output_transposed),
    Variant("attn-out-proj-transposed", "attn.c_proj", "the weight of attn.c_proj is transposed (it is square, so every shape fits)", output_transposed),
    *linear_variants("attn.c_proj", "attn.c_proj", bias_missing="attn-out-bias-dropped"),
)  # fmt: skip
