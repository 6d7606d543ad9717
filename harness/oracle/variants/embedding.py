"""Variants of the embeddings: which position each token gets, and how token and position embeddings are combined."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import At, Operation
from harness.oracle.variants.layer_norm import gain_and_bias, normalise
from harness.oracle.variants.variant import Variant


def look_up(positions: Callable[[At, Tensor, Tensor], Tensor]) -> Operation:
    """Return the operation that reads the rows `positions(at, ids, p)` of wpe; `p` (T,) are GPT-2's own positions.

    Positions outside the table are clamped to it: the mistake is then seen elsewhere, and the lookup does not fail.
    """

    def position_embedding(at: At, ids: Tensor) -> Tensor:
        p = torch.arange(at.start, at.start + ids.shape[1])
        return at["wpe.weight"][positions(at, ids, p).clamp(0, at.size.context - 1)]

    return position_embedding


def shifted(offset: int) -> Operation:
    """Return the lookup with `offset` added to every position."""
    return look_up(lambda at, ids, p: p + offset)


def rolled(shift: int) -> Operation:
    """Return the lookup in a table whose rows are rolled by `shift`."""
    return lambda at, ids: at["wpe.weight"].roll(shift, 0)[at.start : at.start + ids.shape[1]]


def clamped(last: int) -> Operation:
    """Return the lookup that stops at position `context + last`."""
    return look_up(lambda at, ids, p: p.clamp(max=at.size.context + last))


def sinusoids(*, in_halves: bool) -> Operation:
    """Return the fixed positions of Vaswani et al. 2017: sines and cosines alternating, or one half each."""

    def position_embedding(at: At, ids: Tensor) -> Tensor:
        C, dtype = at.size.width, at["wte.weight"].dtype
        precision = torch.promote_types(dtype, torch.float32)  # of the angles, as in `rotary.rotated`
        steps = torch.arange(at.start, at.start + ids.shape[1], dtype=precision)[:, None]
        angles = steps / 10000 ** (torch.arange(0, C, 2, dtype=precision) / C)
        pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # (T, C / 2, 2)
        table = pairs.mT.flatten(1) if in_halves else pairs.flatten(1)
        return table.to(dtype)

    return position_embedding


def normed_by_ln_1(at: At, token: Tensor, position: Tensor) -> Tensor:
    """Normalise the sum with the first block's ln_1."""
    return normalise(token + position, *gain_and_bias(at.at(0), "ln_1"))


def normed_by_ln_f(at: At, token: Tensor, position: Tensor) -> Tensor:
    """Normalise the sum with ln_f."""
    return normalise(token + position, *gain_and_bias(at, "ln_f"))


# at; ids (B, T) -> (T, C)
POSITION = (
    Variant("pos-reversed", "embedding.position", "positions count down instead of up", look_up(lambda at, ids, p: p.flip(0))),
    Variant("pos-constant", "embedding.position", "every token gets position 0", look_up(lambda at, ids, p: torch.zeros_like(p))),
    Variant("pos-indexed-by-batch", "embedding.position", "the position table is indexed by the row of the batch instead of the time step", look_up(lambda at, ids, p: torch.arange(ids.shape[0])[:, None].expand_as(ids))),
    Variant("pos-from-token-ids", "embedding.position", "the position table is looked up with the token ids", lambda at, ids: at["wpe.weight"][ids % at.size.context]),
    Variant("pos-from-token-ids", "embedding.position", "the position table is looked up with the token ids, clamped", lambda at, ids: at["wpe.weight"][ids.clamp(max=at.size.context - 1)]),
    Variant("pos-from-one", "embedding.position", "positions are shifted by +1", shifted(1)),
    Variant("pos-offset", "embedding.position", "positions are shifted by +2", shifted(2)),
    Variant("pos-offset", "embedding.position", "positions are shifted by -1", shifted(-1)),
    *(Variant("load-wpe-shifted", "embedding.position", f"the position table is rolled by {shift:+d} rows", rolled(shift)) for shift in (1, 2, -1, -2)),
    *(Variant("pos-last-clamped", "embedding.position", "positions are clamped before the end of the context", clamped(last)) for last in (-2, -3)),
    Variant("pos-sinusoidal", "embedding.position", "sines and cosines replace the learned positions", sinusoids(in_halves=False)),
    Variant("pos-sinusoidal", "embedding.position", "sines and cosines replace the learned positions", sinusoids(in_halves=True)),
)  # fmt: skip

# at; token (B, T, C), position (T, C) -> (B, T, C)
SUM = (
    Variant("pos-multiplied", "embedding", "token and position embeddings are multiplied", lambda at, t, p: t * p),
    Variant("pos-missing", "embedding", "position embeddings are not added", lambda at, t, p: t),
    Variant("token-embedding-missing", "embedding", "token embeddings are not added", lambda at, t, p: p + 0 * t),
    Variant("pos-subtracted", "embedding", "position embeddings are subtracted", lambda at, t, p: t - p),
    Variant("pos-added-twice", "embedding", "position embeddings are added twice", lambda at, t, p: t + 2 * p),
    Variant("embedding-scaled", "embedding", "token embeddings are multiplied by sqrt(width), as in Vaswani et al.; GPT-2 does not scale them", lambda at, t, p: t * math.sqrt(at.size.width) + p),
    Variant("embedding-scaled", "embedding", "the sum of the embeddings is multiplied by sqrt(width)", lambda at, t, p: (t + p) * math.sqrt(at.size.width)),
    Variant("embedding-ln-extra", "embedding", "the embeddings go through ln_1 before the first block", normed_by_ln_1),
    Variant("embedding-ln-extra", "embedding", "the embeddings go through ln_f before the first block", normed_by_ln_f),
    Variant("embedding-ln-extra", "embedding", "the embeddings are normalised before the first block", lambda at, t, p: F.layer_norm(t + p, t.shape[-1:])),
)  # fmt: skip

EMBEDDING = (*POSITION, *SUM)
