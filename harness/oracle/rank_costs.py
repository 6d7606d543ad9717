"""What a rank sends and stores in a training step, by closed form."""

from __future__ import annotations

import math
from collections.abc import Collection

from harness.core.sizes import Size
from harness.subjects.ranks.program import DATA, SHARDED


def sent_bytes(
    kind: str, size: Size, *, ranks: int, elements: int, positions: int, element_bytes: int, micro_batches: int = 1,
    column_matrices: int = 2, is_vocabulary_split: bool = False,
) -> float:  # fmt: skip
    """Return the bytes that each of n ranks sends in a step, if every collective is a ring.

    data: the gradient is averaged once, 2 (n-1)/n of its bytes. sharded: every micro-batch gathers all parameters
    forward and backward, and the gradient is scattered once: (2 m + 1) (n-1)/n of them (ZeRO-3, Rajbhandari et al.
    2020, section 7). tensor: every micro-batch sums the results of both branches of a layer forward, and the gradient
    of the input of each matrix that is split by its outputs backward, 2 (n-1)/n of B T C each (Megatron-LM, Shoeybi et
    al. 2019, section 3, where these are two). A split vocabulary is one more sum forward, of the embeddings, one
    backward, of the head's input, and the logits, (n-1)/n of B T V, gathered.

    Args:
        kind: "data", "sharded" or "tensor".
        size: of the model.
        ranks: n.
        elements: of all parameters, a tied head once.
        positions: B T of all micro-batches of all ranks together.
        element_bytes: of a parameter, a gradient and an activation.
        micro_batches: m, of each rank.
        column_matrices: of a layer: 2 with a fused projection, 4 if queries, keys and values have one each.
        is_vocabulary_split: if no tensor parallel rank has all rows of the embedding and the head.
    """
    share = (ranks - 1) / ranks
    if kind == DATA:
        return 2 * share * elements * element_bytes
    if kind == SHARDED:
        return (2 * micro_batches + 1) * share * elements * element_bytes
    sums = size.layers * (2 + column_matrices) + (2 if is_vocabulary_split else 0)
    logits = size.vocab_size if is_vocabulary_split else 0
    return share * positions * (sums * 2 * size.width + logits) * element_bytes


def stored_elements(kind: str, size: Size, *, ranks: int, shapes: Collection[tuple[int, ...]]) -> int:
    """Return the elements of the parameters of the largest rank; gradients are as many, AdamW's moments twice that.

    data: all. sharded: the rows of every parameter are shared, and the first rank has the most. tensor: a part of what
    Megatron splits, all but the embeddings, the norms and the biases after a sum, which every rank has.
    """
    every = sum(map(math.prod, shapes))
    if kind == DATA:
        return every
    if kind == SHARDED:
        return sum(math.ceil(shape[0] / ranks) * math.prod(shape[1:]) for shape in shapes)
    C = size.width
    split = size.layers * ((3 * C * C + 3 * C) + C * C + (4 * C * C + 4 * C) + 4 * C * C)
    return every - split + split // ranks
