"""Variants of greedy decoding: the logits that people take the largest of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from harness.subjects.model import Model

# (model, ids (B, T) so far, length of the prompt) -> logits (B, V) of which the largest is the next token
NextLogits = Callable[[Model, Tensor, int], Tensor]


@dataclass(frozen=True)
class GreedyVariant:
    """One way to decode differently: the component, the fault's id, one sentence about it, and the logits."""

    where: str
    fault: str
    says: str
    logits: NextLogits


def definition(model: Model, ids: Tensor, prompt: int) -> Tensor:
    """Return the last position's logits, of the last tokens that fit the context."""
    return model.logits(ids[:, -model.size.context :])[:, -1]


def at_position(position: int) -> NextLogits:
    """Return the logits of another position of the context."""
    return lambda model, ids, prompt: model.logits(ids[:, -model.size.context :])[:, position]


def at_position_of_new_tokens(position: int) -> NextLogits:
    """Return the logits at a position of what the cache does not have yet.

    That is the whole prompt at first and then one token at a time; past the context, which needs no cache, everything.
    """

    def logits(model: Model, ids: Tensor, prompt: int) -> Tensor:
        found = model.logits(ids[:, -model.size.context :])
        whole = ids.shape[1] in (prompt, model.size.context) or ids.shape[1] > model.size.context
        return found[:, position] if whole else found[:, -1]

    return logits


def cropped_to(count: Callable[[int], int]) -> NextLogits:
    """Return the last position's logits of the last `count(context)` tokens, once they no longer fit the context."""

    def logits(model: Model, ids: Tensor, prompt: int) -> Tensor:
        context = model.size.context
        return model.logits(ids if ids.shape[1] <= context else ids[:, -count(context) :])[:, -1]

    return logits


def least_likely(model: Model, ids: Tensor, prompt: int) -> Tensor:
    """Return the negated logits of the definition."""
    return -definition(model, ids, prompt)


def first_tokens(model: Model, ids: Tensor, prompt: int) -> Tensor:
    """Return the last position's logits of the first tokens that fit the context."""
    return model.logits(ids[:, : model.size.context])[:, -1]


GREEDY_VARIANTS = (
    GreedyVariant("generation.position", "gen-wrong-position",
                  "the next token is taken from the first position's logits", at_position(0)),
    GreedyVariant("generation.position", "gen-last-but-one-position",
                  "the next token is taken from the last position but one", at_position(-2)),
    GreedyVariant("generation.position", "gen-wrong-position",
                  "the next token is taken from the first position's logits, of the tokens that are not cached",
                  at_position_of_new_tokens(0)),
    GreedyVariant("generation.position", "gen-last-but-one-position",
                  "the next token is taken from the last position but one, of the tokens that are not cached",
                  at_position_of_new_tokens(-2)),
    GreedyVariant("generation.temperature", "", "at temperature 0 the least likely token is taken", least_likely),
    GreedyVariant("generation.crop", "gen-crop-wrong-side",
                  "past the context the first tokens are read, not the last", first_tokens),
    GreedyVariant("generation.crop", "gen-crop-one-too-short",
                  "past the context one token fewer is read than fits", cropped_to(lambda context: context - 1)),
    GreedyVariant("generation.crop", "gen-crop-too-short",
                  "past the context half of it is read", cropped_to(lambda context: context // 2)),
    GreedyVariant("generation.crop", "gen-crop-to-one",
                  "past the context only the latest token is read", cropped_to(lambda context: 1)),
)  # fmt: skip
