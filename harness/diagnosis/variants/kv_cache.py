"""Variants of decoding with a key/value cache: positions, what is appended, what is stored, and the mask."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.oracle.formula import At, Replacement

# (tokens cached, tokens new, calls so far, keys cached) -> the position of the first new token
Start = Callable[[int, int, int, int], int]
CacheUpdate = Callable[
    [At, Tensor, Tensor], tuple[Tensor, Tensor]
]  # at, new keys, new values (B, H, T, D) -> (B, H, S, D)
POSITION, APPEND, VALUE, MASK = "cache.position", "cache.append", "cache.value", "cache.mask"


def tokens_cached(tokens: int, new: int, calls: int, keys: int) -> int:
    """Return the right position of the first new token."""
    return tokens


def keys_cached(tokens: int, new: int, calls: int, keys: int) -> int:
    """Return the number of keys in the cache, which is wrong if some were dropped."""
    return keys


@dataclass(frozen=True)
class CacheVariant:
    """One way to decode differently: the component, the fault's id, one sentence, and what the formula does instead."""

    where: str
    fault: str
    says: str
    start: Start = tokens_cached
    changes: tuple[Replacement, ...] = ()


def cache_update(function: CacheUpdate) -> tuple[Replacement]:
    """Return the change for another update of the cache."""
    return (Replacement("cache", function),)


def mask(allowed: Callable[[int, int], Tensor]) -> Replacement:
    """Return the change for another mask: `allowed(T, S)` is (T, S), True where a query may see a key."""
    return Replacement("attn.mask", lambda at, scores: scores.masked_fill(~allowed(*scores.shape[-2:]), -math.inf))


def causal(T: int, S: int) -> Tensor:
    """Return the right mask (T, S): the queries are the last T of S positions."""
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def top_left(T: int, S: int) -> Tensor:
    """Return a mask that treats the queries as the first T of S positions."""
    return torch.ones(T, S, dtype=torch.bool).tril()


def prepended(T: int, S: int) -> Tensor:
    """Return the right mask for keys whose new ones come first."""
    return torch.cat((torch.ones(T, T, dtype=torch.bool).tril(), torch.ones(T, S - T, dtype=torch.bool)), dim=1)


def past_of(at: At) -> tuple[dict[Any, Any], Any]:
    """Return the cache of the formula, by layer, and the layer of `at`."""
    assert at.formula.past is not None
    return at.formula.past, at.layer


def concatenated(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Return keys and values, concatenated along time."""
    return torch.cat((first[0], second[0]), dim=2), torch.cat((first[1], second[1]), dim=2)


def prepending(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Put new keys and values before the cached ones."""
    past, layer = past_of(at)
    if layer in past:
        k, v = concatenated((k, v), past[layer])
    past[layer] = k, v
    return k, v


def overwriting(*, from_first: bool) -> CacheUpdate:
    """Return an update that overwrites the last slot, from the first step after the prefill or from the second."""

    def update(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = past_of(at)
        if layer in past:
            keys, values = past[layer]
            end = keys.shape[2] - (from_first or (layer, "written") in past)
            past[layer, "written"] = True
            k, v = concatenated((keys[:, :, :end], values[:, :, :end]), (k, v))
        past[layer] = k, v
        return k, v

    return update


def stale(*, keys: bool, values: bool, single: bool, cached: bool) -> CacheUpdate:
    """Return an update that appends older keys or values instead of the new ones.

    `single`: only when one token is new. `cached`: the latest in the cache, otherwise the previous call's new ones.
    """

    def update(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = past_of(at)
        new = k.shape[2]
        previous = past.get((layer, "last"))
        past[layer, "last"] = k, v
        if layer in past:
            before = past[layer] if cached or previous is None else previous
            if not single or new == 1:
                older_k, older_v = before[0][:, :, -new:], before[1][:, :, -new:]
                k = older_k if keys and older_k.shape == k.shape else k
                v = older_v if values and older_v.shape == v.shape else v
            k, v = concatenated(past[layer], (k, v))
        past[layer] = k, v
        return k, v

    return update


def last_calls_only(calls: int) -> CacheUpdate:
    """Return an update that drops all keys and values but those of the last `calls` calls."""

    def update(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = past_of(at)
        past[layer] = latest = [*past.get(layer, []), (k, v)][-calls:]
        return torch.cat([keys for keys, _ in latest], dim=2), torch.cat([values for _, values in latest], dim=2)

    return update


def shared(*, keys: bool, values: bool) -> CacheUpdate:
    """Return an update that stores the first layer's keys or values in every layer."""

    def update(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        past, layer = past_of(at)
        new = k.shape[2]
        if layer in past:
            k, v = concatenated(past[layer], (k, v))
        if layer:
            first_k, first_v = past[0]
            k = torch.cat((first_k[:, :, :-new], k[:, :, -new:]), dim=2) if keys else k
            v = torch.cat((first_v[:, :, :-new], v[:, :, -new:]), dim=2) if values else v
        past[layer] = k, v
        return k, v

    return update


def tokens_without_position(at: At, tokens: Tensor, positions: Tensor) -> Tensor:
    """Leave out the position embedding of a single token."""
    return tokens if tokens.shape[1] == 1 else tokens + positions


OFFSET_GROWS = "the offset grows by all earlier tokens, not by the new ones"
OVERWRITTEN = "new keys and values overwrite the last ones"
# Among the variants that match equally well, the diagnosis names the first.
CACHE_VARIANTS = (
    CacheVariant(POSITION, "kv-pos-restart-at-zero", "positions begin at 0 at each step", lambda tokens, *_: 0),
    CacheVariant(POSITION, "kv-pos-off-by-one", "positions of cached steps are one too high",
                 lambda tokens, *_: tokens + (tokens > 0)),
    CacheVariant(POSITION, "kv-pos-one-too-low", "positions of cached steps are one too low",
                 lambda tokens, *_: tokens - (tokens > 0)),
    CacheVariant(POSITION, "kv-pos-off-by-one", "positions count calls, not tokens",
                 lambda tokens, new, calls, keys: calls),
    CacheVariant(POSITION, "kv-pos-skipped-single-token", "a single token gets no position embedding",
                 changes=(Replacement("embedding", tokens_without_position),)),
    # The calls have the sizes of CHUNKS in searches/kv_cache.py: a prefill of 5, then single tokens.
    CacheVariant(POSITION, "kv-offset-grows-by-prompt", OFFSET_GROWS,
                 lambda tokens, *_: tokens if tokens <= 5 else 5 * (tokens - 4)),
    CacheVariant(POSITION, "kv-offset-grows-by-prompt", OFFSET_GROWS, lambda tokens, *_: 2 * tokens),
    CacheVariant(POSITION, "kv-offset-grows-by-prompt", OFFSET_GROWS, lambda tokens, *_: tokens * (tokens + 1) // 2),
    CacheVariant(APPEND, "kv-overwrites-last-slot", OVERWRITTEN, keys_cached,
                 cache_update(overwriting(from_first=True))),
    CacheVariant(APPEND, "kv-overwrites-last-slot", OVERWRITTEN, keys_cached,
                 cache_update(overwriting(from_first=False))),
    CacheVariant(APPEND, "kv-overwrites-last-slot", OVERWRITTEN, tokens_cached,
                 cache_update(overwriting(from_first=True))),
    CacheVariant(APPEND, "kv-overwrites-last-slot", OVERWRITTEN, tokens_cached,
                 cache_update(overwriting(from_first=False))),
    CacheVariant(APPEND, "kv-prepends-new", "new keys and values go before the old ones",
                 changes=cache_update(prepending)),
    CacheVariant(APPEND, "kv-prepends-new", "new keys and values go before the old ones, and so does the mask",
                 changes=(*cache_update(prepending), mask(prepended))),
    *(
        CacheVariant(VALUE, "kv-value-stale", f"cached {what} lag one step behind",
                     changes=cache_update(stale(keys=keys, values=values, single=single, cached=cached)))
        for keys, values, what in ((False, True, "values"), (True, False, "keys"), (True, True, "keys and values"))
        for single in (True, False)
        for cached in (True, False)
    ),
    CacheVariant(APPEND, "kv-keys-not-kept", "cached keys and values are dropped at each step",
                 changes=cache_update(last_calls_only(1))),
    CacheVariant(APPEND, "kv-keys-not-kept", "only the previous step's keys and values are cached",
                 changes=cache_update(last_calls_only(2))),
    CacheVariant(VALUE, "kv-layers-share-memory", "all layers store the first layer's values",
                 changes=cache_update(shared(keys=False, values=True))),
    CacheVariant(VALUE, "kv-layers-share-memory", "all layers store the first layer's keys and values",
                 changes=cache_update(shared(keys=True, values=True))),
    CacheVariant(MASK, "kv-mask-top-left", "the mask is aligned at its top left: a new token sees the first keys only",
                 changes=(mask(top_left),)),
    CacheVariant(MASK, "kv-prefill-no-mask", "the prefill has no mask",
                 changes=(mask(lambda T, S: causal(T, S) | (T == S)),)),
    CacheVariant(MASK, "kv-chunk-no-mask", "several new tokens see one another once tokens are cached",
                 changes=(mask(lambda T, S: causal(T, S) | (T != S)),)),
    CacheVariant(MASK, "kv-chunk-no-mask", "decoding with a cache has no mask",
                 changes=(Replacement("attn.mask", lambda at, scores: scores),)),
)  # fmt: skip
