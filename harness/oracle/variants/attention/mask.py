"""Variants of the causal mask: which positions a query sees, and how the others are hidden."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.oracle.formula import At, Operation, visible
from harness.oracle.variants.variant import Variant

Mask = Callable[[int, int], Tensor]  # T queries, S keys -> (T, S), true where a query sees a key


def filled(allowed: Mask, value: float = -math.inf) -> Operation:
    """Return the mask that fills the scores outside `allowed(T, S)` with `value`."""
    return lambda at, scores: scores.masked_fill(~allowed(*scores.shape[-2:]), value)


def added(value: float) -> Operation:
    """Return the mask that adds `value` to the scores to hide."""
    return lambda at, scores: scores + value * (~visible(*scores.shape[-2:])).to(scores.dtype)


def up_to(offset: int) -> Mask:
    """Return the mask under which a position sees everything up to `offset` positions after it."""
    return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T + offset)


def up_to_but_first_itself(offset: int) -> Mask:
    """Return `up_to(offset)`, with position 0 seeing itself so that no row is empty."""

    def mask(T: int, S: int) -> Tensor:
        allowed = up_to(offset)(T, S).clone()
        allowed[0, 0] = True
        return allowed

    return mask


def itself_and_future(T: int, S: int) -> Tensor:
    """Return the upper triangle with its diagonal."""
    return torch.ones(T, S, dtype=torch.bool).triu()


def future_only(T: int, S: int) -> Tensor:
    """Return the upper triangle without its diagonal."""
    return torch.ones(T, S, dtype=torch.bool).triu(1)


def itself_only(T: int, S: int) -> Tensor:
    """Return the diagonal."""
    return torch.eye(T, S, dtype=torch.bool)


def without_first(T: int, S: int) -> Tensor:
    """Return GPT-2's mask with position 0 hidden from all others."""
    allowed = visible(T, S).clone()
    allowed[1:, 0] = False
    return allowed


def until_row(row: int) -> Mask:
    """Return GPT-2's mask for the queries before `row`; the queries from there on see everything."""
    return lambda T, S: visible(T, S) | (torch.arange(T)[:, None] >= row)


def window(length: int) -> Mask:
    """Return the mask under which a position sees the last `length` positions, itself included."""
    return lambda T, S: visible(T, S).triu(S - T - length + 1)


def after_softmax(at: At, weights: Tensor, values: Tensor) -> Tensor:
    """Mix the values by probabilities that were masked after the softmax, and not normalised again."""
    scores: Tensor = at.formula.taps[f"h.{at.layer}.attn.scale"]
    return scores.softmax(-1) * visible(*scores.shape[-2:]) @ values


FILLS = (-math.inf, -1e9, -1e10, torch.finfo(torch.float32).min, torch.finfo(torch.float64).min)

# at; scores (B, H, T, S) -> (B, H, T, S)
MASK = (
    Variant("mask-missing", "attn.mask", "there is no causal mask", lambda at, scores: scores),
    Variant("mask-allows-next", "attn.mask", "the mask lets every position see the next one", filled(up_to(1))),
    Variant("mask-allows-next", "attn.mask", "the mask lets every position see two ahead", filled(up_to(2))),
    Variant("attention-to-others-only", "attn.mask", "the mask hides every position from itself", filled(up_to_but_first_itself(-1))),
    *(Variant("attention-to-others-only", "attn.mask", "the mask hides every position from itself", filled(up_to(-1), value)) for value in FILLS),
    Variant("mask-transposed", "attn.mask", "the mask is upside down: every position sees only itself and the future", filled(itself_and_future)),
    # The last position sees nothing then: NaN, or everything alike where the fill is finite.
    *(Variant("mask-inverted", "attn.mask", "the mask is inverted: it hides the past and shows the future", filled(future_only, value)) for value in FILLS[:2]),
    Variant("mask-fill-zero", "attn.mask", "masked scores are filled with 0", filled(visible, 0.0)),
    Variant("mask-fill-sign-of-exponent", "attn.mask", "masked scores are filled with 1e-09", filled(visible, 1e-9)),
    Variant("mask-fill-sign-of-exponent", "attn.mask", "masked scores are filled with 1e-10", filled(visible, 1e-10)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores are filled with -1", filled(visible, -1.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores have -1 added", added(-1.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores are filled with -10", filled(visible, -10.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores have -10 added", added(-10.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores are filled with -20", filled(visible, -20.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores have -20 added", added(-20.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores are filled with -50", filled(visible, -50.0)),
    Variant("mask-fill-too-small", "attn.mask", "masked scores have -50 added", added(-50.0)),
    # No row adds -100: that is enough to hide a score, so it computes what GPT-2 computes.
    Variant("mask-fill-too-small", "attn.mask", "masked scores are filled with -100", filled(visible, -100.0)),
    Variant("mask-fill-zero", "attn.mask", "scores are multiplied by the mask: masked scores are 0, and keep their weight", lambda at, scores: scores * visible(*scores.shape[-2:])),
    Variant("mask-added-as-ones", "attn.mask", "a mask of ones and zeros is added to the scores", lambda at, scores: scores + visible(*scores.shape[-2:]).to(scores.dtype)),
    Variant("mask-added-as-ones", "attn.mask", "a mask of ones and zeros is added to the scores", lambda at, scores: scores + (~visible(*scores.shape[-2:])).to(scores.dtype)),
    Variant("mask-hides-first-position", "attn.mask", "the first position is hidden", filled(without_first)),
    Variant("attention-to-self-only", "attn.mask", "every position sees only itself", filled(itself_only)),
    *(Variant("mask-ends-early", "attn.mask", f"from position {row} on there is no mask", filled(until_row(row))) for row in (4, 8, 10, 12, 16, 20, 24, 28, 30)),
    *(Variant("mask-window-not-respected", "attn.mask", f"every position sees only the last {length} positions", filled(window(length))) for length in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)),
    # This variant replaces the product with the values, because the scores before the mask are known only there.
    Variant("mask-after-softmax", "attn.mix", "the mask multiplies the probabilities after the softmax: rows do not sum to 1", after_softmax, where="attn.mask"),
)  # fmt: skip
