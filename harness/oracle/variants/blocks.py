"""Variants of the blocks: how one block connects its parts, and in which order the blocks run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.oracle.formula import At, Operation, operation_of
from harness.oracle.variants.variant import Variant

# One block, from x (B, T, C) to (B, T, C). GPT-2's own is `block` in formula.py.


def norms_after_additions(at: At, x: Tensor) -> Any:
    """Normalise after each addition, as in Vaswani et al. 2017."""
    x = at.do("ln_1", at.do("residual.attn", x, at.do("attn", x)))
    return at.do("ln_2", at.do("residual.mlp", x, at.do("mlp", x)))


def norms_after_branches(at: At, x: Tensor) -> Any:
    """Normalise each branch's output before it is added."""
    x = at.do("residual.attn", x, at.do("ln_1", at.do("attn", x)))
    return at.do("residual.mlp", x, at.do("ln_2", at.do("mlp", x)))


def parallel(at: At, x: Tensor) -> Any:
    """Give attention and MLP the same input, each with its own norm."""
    attended = at.do("attn", at.do("ln_1", x))
    return at.do("residual.mlp", at.do("residual.attn", x, attended), at.do("mlp", at.do("ln_2", x)))


def parallel_with_one_norm(at: At, x: Tensor) -> Any:
    """Give attention and MLP the same input, normalised by ln_1."""
    normed = at.do("ln_1", x)
    return at.do("residual.mlp", at.do("residual.attn", x, at.do("attn", normed)), at.do("mlp", normed))


def skip_from_block_input(at: At, x: Tensor) -> Any:
    """Start the skip connection around the MLP at the block's input."""
    after = at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))
    return at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", after)))


def mlp_reads_attention(at: At, x: Tensor) -> Any:
    """Give the MLP the attention's output instead of the residual stream."""
    attended = at.do("attn", at.do("ln_1", x))
    after = at.do("residual.attn", x, attended)
    return at.do("residual.mlp", after, at.do("mlp", at.do("ln_2", attended)))


def mlp_first(at: At, x: Tensor) -> Any:
    """Run the MLP before the attention."""
    x = at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", x)))
    return at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))


def norms_swapped(at: At, x: Tensor) -> Any:
    """Use ln_2 before the attention and ln_1 before the MLP."""
    x = at.do("residual.attn", x, at.do("attn", at.do("ln_2", x)))
    return at.do("residual.mlp", x, at.do("mlp", at.do("ln_1", x)))


def attention_only(at: At, x: Tensor) -> Any:
    """Leave out the MLP."""
    return at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))


def mlp_only(at: At, x: Tensor) -> Any:
    """Leave out the attention."""
    return at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", x)))


def skip_from_ln_2(at: At, x: Tensor) -> Any:
    """Start the skip connection around the MLP after ln_2."""
    x = at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))
    normed = at.do("ln_2", x)
    return at.do("residual.mlp", normed, at.do("mlp", normed))


def skips_from_norms(at: At, x: Tensor) -> Any:
    """Normalise the residual stream itself, before the attention and before the MLP."""
    x = at.do("ln_1", x)
    x = at.do("ln_2", at.do("residual.attn", x, at.do("attn", x)))
    return at.do("residual.mlp", x, at.do("mlp", x))


def block_twice(at: At, x: Tensor) -> Any:
    """Apply the block twice."""
    return operation_of("block")(at, operation_of("block")(at, x))


def with_weights_of_layer(layer: int) -> Operation:
    """Return the block with the weights of one fixed layer."""
    return lambda at, x: operation_of("block")(at.at(layer), x)


BLOCK = (
    Variant("post-norm", "block", "the norms come after the additions (post-norm); GPT-2 has them before (pre-norm)", norms_after_additions),
    Variant("post-norm", "block", "the norms come after the branches, before the additions", norms_after_branches),
    Variant("parallel-block", "block", "attention and MLP both read the block's input (in parallel)", parallel),
    Variant("parallel-block", "block", "attention and MLP both read ln_1 of the block's input (in parallel)", parallel_with_one_norm),
    Variant("residual-from-block-input", "block", "the skip connection around the MLP starts at the block's input", skip_from_block_input),
    Variant("mlp-reads-attention", "block", "the MLP reads the attention's output instead of the residual stream", mlp_reads_attention),
    Variant("mlp-before-attention", "block", "the MLP comes before the attention", mlp_first),
    Variant("ln-swapped-in-block", "block", "ln_1 and ln_2 are swapped", norms_swapped, where="ln_1"),
    Variant("mlp-branch-missing", "block", "the block has no MLP", attention_only),
    Variant("attn-branch-missing", "block", "the block has no attention", mlp_only),
    Variant("ln-before-residual", "block", "the skip connection around the MLP starts after ln_2 instead of before it", skip_from_ln_2),
    Variant("ln-before-residual", "block", "the residual stream itself is normalised: both skip connections start after their norm", skips_from_norms),
    Variant("block-skipped", "block", "the block is skipped", lambda at, x: x),
    Variant("block-applied-twice", "block", "the block is applied twice", block_twice),
    Variant("mlp-branch-missing", "mlp", "the MLP returns zeros", lambda at, x: torch.zeros_like(x)),
    *(Variant("layer-weights-mixed", "block", f"the block computes with the weights of layer {layer}", with_weights_of_layer(layer)) for layer in range(3)),
)  # fmt: skip


# All blocks, from x (B, T, C) to (B, T, C). GPT-2's own is `blocks` in formula.py.


def in_order(order: Callable[[int], list[int]]) -> Operation:
    """Return the loop over the blocks in the order that `order(number of layers)` lists."""

    def run_blocks(at: At, x: Tensor) -> Tensor:
        for layer in order(at.size.layers):
            x = at.at(layer).do("block", x)
        return x

    return run_blocks


def norm_after_each(at: At, x: Tensor) -> Tensor:
    """Apply ln_f after every block."""
    for layer in range(at.size.layers):
        x = operation_of("ln_f")(at, at.at(layer).do("block", x))
    return x


def positions_after_first_block(at: At, x: Tensor) -> Tensor:
    """Run the first block on the token embeddings alone, and add the position embeddings after it."""
    taps = at.formula.taps
    x = at.at(0).do("block", taps["embedding.token"]) + taps["embedding.position"]
    for layer in range(1, at.size.layers):
        x = at.at(layer).do("block", x)
    return x


def same_input_for_all(at: At, x: Tensor) -> Any:
    """Give every block the embeddings, and return the last block's output."""
    for layer in range(at.size.layers):
        out = at.at(layer).do("block", x)
    return out


def embeddings_added_again(at: At, x: Tensor) -> Tensor:
    """Add the embeddings after every block."""
    stream = x
    for layer in range(at.size.layers):
        stream = at.at(layer).do("block", stream) + x
    return stream


STACK = (
    Variant("last-block-skipped", "blocks", "the last block is not run", in_order(lambda layers: list(range(layers - 1)))),
    Variant("first-block-skipped", "blocks", "the first block is not run", in_order(lambda layers: list(range(1, layers)))),
    Variant("blocks-in-reverse", "blocks", "the blocks run in reverse", in_order(lambda layers: list(reversed(range(layers))))),
    Variant("first-block-for-all", "blocks", "every layer runs block 0", in_order(lambda layers: [0] * layers)),
    Variant("blocks-share-one-module", "blocks", "every layer runs the last block", in_order(lambda layers: [layers - 1] * layers)),
    Variant("last-block-repeated", "blocks", "the last block is run twice", in_order(lambda layers: [*range(layers), layers - 1])),
    Variant("block-skipped", "blocks", "every other block is skipped", in_order(lambda layers: list(range(0, layers, 2)))),
    Variant("final-ln-after-every-block", "blocks", "ln_f is applied after every block", norm_after_each, where="ln_f"),
    Variant("wpe-added-after-first-block", "blocks", "the positions are added after the first block", positions_after_first_block, where="embedding"),
    Variant("input-to-every-block", "blocks", "every block receives the embeddings; only the last block's output is used", same_input_for_all),
    Variant("stream-added-again", "blocks", "the embeddings are added again after every block", embeddings_added_again),
    Variant("blocks-skipped", "blocks", "no block is run", lambda at, x: x),
)  # fmt: skip
