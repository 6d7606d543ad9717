"""Variants of sampling: the distributions that people draw the next token from."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class SamplingSettings:
    """The arguments of one call of `generate`."""

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __str__(self) -> str:
        words = [f"temperature {self.temperature:g}"]
        words += [f"top_k {self.top_k}"] if self.top_k else []
        words += [f"top_p {self.top_p:g}"] if self.top_p else []
        return ", ".join(words)


# (logits (N, T, V) of the context, settings, number of the step from 0) -> probabilities (N, V)
Distribution = Callable[[Tensor, SamplingSettings, int], Tensor]
TEMPERATURE, TOP_K, TOP_P, POSITION = (
    "generation.temperature", "generation.top_k", "generation.top_p", "generation.position",
)  # fmt: skip


@dataclass(frozen=True)
class SamplingVariant:
    """One way to sample differently: the component, the fault's id, one sentence about it, and the distribution."""

    where: str
    fault: str
    says: str
    distribution: Distribution


def last_logits(logits: Tensor, temperature: float) -> Tensor:
    """Return the last position's logits (N, V) divided by the temperature."""
    return logits[:, -1] / temperature


def keep_top_k(logits: Tensor, k: int | None, fill: float = -math.inf) -> Tensor:
    """Return the logits (N, V), all but the k largest replaced by `fill`."""
    if not k or k < 1:
        return logits
    kth = logits.topk(min(k, logits.shape[-1]), dim=-1).values[:, -1:]
    return logits.masked_fill(logits < kth, fill)


def keep_top_p(probabilities: Tensor, p: float | None, shift: int = 0) -> Tensor:
    """Return the probabilities (N, V) of the nucleus, normalised.

    The nucleus is the smallest set of likeliest tokens whose mass reaches p (Holtzman et al. 2020), here with `shift`
    tokens more.
    """
    if p is None:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True)
    count = (ordered.cumsum(-1) - ordered < p).sum(-1, keepdim=True) + shift
    in_nucleus = torch.arange(ordered.shape[-1]) < count.clamp(min=1)
    ordered = ordered * in_nucleus
    return torch.zeros_like(ordered).scatter(-1, order, ordered / ordered.sum(-1, keepdim=True))


def normalised(probabilities: Tensor) -> Tensor:
    """Return probabilities (N, V) that sum to 1."""
    return probabilities / probabilities.sum(-1, keepdim=True)


def definition(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Return the right distribution: temperature, then top-k, then top-p."""
    largest = keep_top_k(last_logits(logits, settings.temperature), settings.top_k)
    return keep_top_p(largest.softmax(-1), settings.top_p)


def with_temperature(change: Callable[[SamplingSettings, int], float]) -> Distribution:
    """Return the definition with the temperature `change(settings, step)`."""
    return lambda logits, s, step: definition(logits, replace(s, temperature=change(s, step)), step)


def with_top_k(change: Callable[[int], int | None]) -> Distribution:
    """Return the definition with `change(top_k)`, where top-k is on."""
    return lambda logits, s, step: definition(logits, replace(s, top_k=change(s.top_k) if s.top_k else None), step)


def with_nucleus(nucleus: Callable[[Tensor, float], Tensor]) -> Distribution:
    """Return the definition with another nucleus: `nucleus(probabilities after top-k (N, V), p)`."""

    def distribution(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
        if settings.top_p is None:
            return definition(logits, settings, step)
        largest = keep_top_k(last_logits(logits, settings.temperature), settings.top_k)
        return nucleus(largest.softmax(-1), settings.top_p)

    return distribution


def with_fill(fill: float) -> Distribution:
    """Return the definition with `fill` in the place of top-k's minus infinity."""
    return lambda logits, s, step: keep_top_p(
        keep_top_k(last_logits(logits, s.temperature), s.top_k, fill).softmax(-1), s.top_p
    )


def first_rows_threshold(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Compare every row's logits with the first row's k-th largest."""
    last = last_logits(logits, settings.temperature)
    if settings.top_k:
        kth = last.topk(settings.top_k).values[:1, -1:]
        # At most the smallest of the rows' maxima, so that every row keeps a token.
        last = last.masked_fill(last < kth.clamp(max=float(last.amax(-1).min())), -math.inf)
    return keep_top_p(last.softmax(-1), settings.top_p)


def top_p_of_unnormalised(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Count top-p's mass in the probabilities of all tokens, of which top-k leaves some."""
    whole = last_logits(logits, settings.temperature).softmax(-1)
    if settings.top_k:
        whole = whole * (keep_top_k(whole, settings.top_k) > -math.inf)
    return keep_top_p(whole, settings.top_p) if settings.top_p else normalised(whole)


def top_p_before_top_k(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Apply top-p first."""
    nucleus = keep_top_p(last_logits(logits, settings.temperature).softmax(-1), settings.top_p)
    return normalised(nucleus * (keep_top_k(nucleus, settings.top_k) > -math.inf))


def top_p_before_temperature(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Choose the nucleus at temperature 1."""
    nucleus = keep_top_p(keep_top_k(logits[:, -1], settings.top_k).softmax(-1), settings.top_p)
    return normalised(nucleus ** (1 / settings.temperature))


def unsorted_nucleus(probabilities: Tensor, p: float) -> Tensor:
    """Cut the nucleus in the order of the vocabulary."""
    return normalised(probabilities * (probabilities.cumsum(-1) - probabilities < p))


def first_of_vocabulary(probabilities: Tensor, p: float) -> Tensor:
    """Keep the first tokens of the vocabulary, as many as the nucleus has: its mask in the order of the likeliest."""
    count = (keep_top_p(probabilities, p) > 0).sum(-1, keepdim=True)
    return normalised(probabilities * (torch.arange(probabilities.shape[-1]) < count))


def nucleus_by_rank(probabilities: Tensor, p: float) -> Tensor:
    """Give the probability of the n-th likeliest token to token n."""
    return keep_top_p(probabilities, p).sort(dim=-1, descending=True).values


def first_token_only(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
    """Apply top-k and top-p at the first step only."""
    return definition(logits, settings if step == 0 else SamplingSettings(settings.temperature), step)


def at_position(position: int, *, cached: bool) -> Distribution:
    """Draw from another position; with a cache, which reads one token at a time after the first step, only there."""

    def distribution(logits: Tensor, settings: SamplingSettings, step: int) -> Tensor:
        return definition(logits[:, -1 if cached and step else position][:, None], settings, step)

    return distribution


# Among the variants that match equally well, the diagnosis names the first.
SAMPLING_VARIANTS = (
    SamplingVariant(TEMPERATURE, "gen-temperature-after-softmax", "the temperature has no effect",
                    with_temperature(lambda s, step: 1.0)),
    SamplingVariant(TEMPERATURE, "gen-temperature-twice", "the temperature is applied twice",
                    with_temperature(lambda s, step: s.temperature**2)),
    SamplingVariant(TEMPERATURE, "gen-temperature-multiplied", "logits are multiplied by the temperature",
                    with_temperature(lambda s, step: 1 / s.temperature)),
    SamplingVariant(TEMPERATURE, "gen-temperature-cumulative", "the temperature is applied once more at every step",
                    with_temperature(lambda s, step: s.temperature ** (step + 1))),
    SamplingVariant(TEMPERATURE, "gen-temperature-dropped-with-top-k", "with top-k the temperature has no effect",
                    with_temperature(lambda s, step: 1.0 if s.top_k else s.temperature)),
    SamplingVariant(TEMPERATURE, "gen-temperature-dropped-with-top-p", "with top-p the temperature has no effect",
                    with_temperature(lambda s, step: 1.0 if s.top_p else s.temperature)),
    SamplingVariant(TEMPERATURE, "gen-temperature-root", "the square root of the temperature is used",
                    with_temperature(lambda s, step: math.sqrt(s.temperature))),
    SamplingVariant(TOP_K, "gen-topk-off-by-one", "k + 1 tokens can be drawn",
                    with_top_k(lambda k: k + 1)),
    SamplingVariant(TOP_K, "gen-topk-one-too-few", "k - 1 tokens can be drawn",
                    with_top_k(lambda k: max(k - 1, 1))),
    SamplingVariant(TOP_K, "gen-topk-ignored", "top_k has no effect",
                    with_top_k(lambda k: None)),
    SamplingVariant(TOP_K, "gen-topk-fill-tiny-positive",
                    "all logits but the k largest become 1e-10, not minus infinity", with_fill(1e-10)),
    SamplingVariant(TOP_K, "gen-topk-fill-tiny-positive",
                    "all logits but the k largest become 0, not minus infinity", with_fill(0.0)),
    SamplingVariant(TOP_K, "gen-topk-fill-tiny-positive",
                    "all logits but the k largest become -1, not minus infinity", with_fill(-1.0)),
    SamplingVariant(TOP_K, "gen-topk-fill-tiny-positive",
                    "all logits but the k largest become -10, not minus infinity", with_fill(-10.0)),
    SamplingVariant(TOP_K, "gen-topk-per-batch", "the k-th largest logit is the first row's, for all rows",
                    first_rows_threshold),
    SamplingVariant(TOP_P, "gen-topp-drops-crossing-token", "the nucleus leaves out the token that crosses p",
                    with_nucleus(lambda q, p: keep_top_p(q, p, -1))),
    SamplingVariant(TOP_P, "gen-topp-keeps-one-more", "the nucleus has one token more than it needs",
                    with_nucleus(lambda q, p: keep_top_p(q, p, 1))),
    SamplingVariant(TOP_P, "gen-topp-ignored", "top_p has no effect",
                    with_nucleus(lambda q, p: q)),
    SamplingVariant(TOP_P, "gen-topp-complement", "the nucleus has the mass 1 - p",
                    with_nucleus(lambda q, p: keep_top_p(q, 1 - p))),
    SamplingVariant(TOP_P, "gen-topp-after-topk-unnormalised",
                    "after top-k the mass is not normalised before top-p counts it", top_p_of_unnormalised),
    SamplingVariant(TOP_P, "gen-topp-before-topk", "top-p comes before top-k", top_p_before_top_k),
    SamplingVariant(TOP_P, "gen-topp-before-temperature", "the nucleus is chosen before the temperature is applied",
                    top_p_before_temperature),
    SamplingVariant(TOP_P, "gen-topp-unsorted", "the nucleus is cut in the order of the vocabulary, unsorted",
                    with_nucleus(unsorted_nucleus)),
    SamplingVariant(TOP_P, "", "the nucleus is the first tokens of the vocabulary, as many as the likeliest would be",
                    with_nucleus(first_of_vocabulary)),
    SamplingVariant(TOP_P, "gen-topp-not-scattered-back", "the rank in the nucleus is used as the token",
                    with_nucleus(nucleus_by_rank)),
    SamplingVariant(TOP_K, "gen-filters-first-token-only", "top_k and top_p apply to the first token only",
                    first_token_only),
    SamplingVariant(POSITION, "gen-wrong-position", "the next token is drawn from position 0",
                    at_position(0, cached=False)),
    SamplingVariant(POSITION, "gen-wrong-position", "the next token is drawn from position 0",
                    at_position(0, cached=True)),
    SamplingVariant(POSITION, "gen-last-but-one-position", "the next token is drawn from position -2",
                    at_position(-2, cached=False)),
    SamplingVariant(POSITION, "gen-last-but-one-position", "the next token is drawn from position -2",
                    at_position(-2, cached=True)),
)  # fmt: skip
