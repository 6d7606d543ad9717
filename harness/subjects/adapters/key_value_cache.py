"""Decode a GPT step by step with its key/value cache, in the styles that people write."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.subjects.compiled import class_of
from harness.subjects.forward_answer import unpack
from harness.subjects.forward_style import forward_parameters, parameters_of, style_of

GROWING = "growing"  # the parameter of new_cache by which a subject offers a cache that is concatenated
# Parameters of `forward` that take the cache of the previous step.
PASTS = (
    "past_key_values",
    "kv_cache",
    "past",
    "cache",
    "layer_past",
    "past_kv",
    "past_kvs",
    "kv_caches",
    "caches",
    "kv",
)
# Methods that empty a cache which the module keeps itself.
RESETS = ("reset_kv_cache", "reset_cache", "clear_cache", "clear_kv_cache", "reset_caches", "empty_cache")


class ReturnedCache:
    """The cache of a model that returns it from each step and takes it at the next."""

    def __init__(self) -> None:
        self.state: Any = None
        self.is_kept = False  # in a container of the caller, which the model fills
        self.length = 0


def caches(kind: type) -> bool:
    """Return True if the forward pass can cache keys and values in a style that `step` supports."""
    words = parameters_of(kind, "forward")
    if callable(getattr(kind, "new_cache", None)) and "cache" in words:
        return True
    if "use_cache" in words and _reset_of(kind) is not None:
        return True
    return any(word in words for word in PASTS) and ("use_cache" in words or "past_key_values" in words)


def grows(kind: type) -> bool:
    """Return True if `new_cache(batch_size, growing=True)` offers a cache that is concatenated at each step."""
    return callable(getattr(kind, "new_cache", None)) and GROWING in parameters_of(kind, "new_cache")


def new_cache(module: Any, batch_size: int, *, growing: bool = False) -> Any:
    """Return an empty cache; see `ChoosesCache.new_cache`."""
    if callable(getattr(module, "new_cache", None)):
        return module.new_cache(batch_size, **({GROWING: True} if growing else {}))
    if (reset := _reset_of(class_of(module))) is not None:
        getattr(module, reset)()
    return ReturnedCache()


def step(module: nn.Module, ids: Tensor, cache: Any) -> Tensor:
    """Return the logits (B, T, V) of `ids` (B, T) appended to the cache; see `Caches.step`.

    Raises MissingAbility for a forward pass that returns no cache, or logits of only some positions.
    """
    if not isinstance(cache, ReturnedCache):
        return unpack(module(ids, cache=cache), ids)[0]
    words = forward_parameters(module)
    options: dict[str, Any] = {"use_cache": True} if "use_cache" in words else {}
    word = next((w for w in PASTS if w in words), None)
    if word is not None:
        if cache.state is None and word in (needed := style_of(module).arguments):
            cache.state, cache.is_kept = needed[word].make(module, ids), True
        options[word] = cache.state
    answer = module(ids, **options)
    if word is not None and not (cache.is_kept and _has_tensor(cache.state)):
        cache.state, cache.is_kept = _cache_in(answer, word), False
        if cache.state is None:
            raise MissingAbility(f"forward takes '{word}', and the harness finds no cache in it, nor in the answer")
    cache.length += ids.shape[1]
    logits = unpack(answer, ids)[0]
    if logits.shape[1] != ids.shape[1]:
        raise MissingAbility(f"a cached step returns logits of {logits.shape[1]} positions for {ids.shape[1]} tokens")
    return logits


def _reset_of(kind: type) -> str | None:
    return next((name for name in RESETS if callable(getattr(kind, name, None))), None)


def _has_tensor(nest: Any) -> bool:
    if isinstance(nest, Mapping):
        return any(map(_has_tensor, nest.values()))
    return any(map(_has_tensor, nest)) if isinstance(nest, tuple | list) else isinstance(nest, Tensor)


def _cache_in(answer: Any, word: str) -> Any:
    """Return the cache in what a forward pass returned: by name, else the last item of a tuple that is no tensor."""
    for name in (word, *PASTS):
        if isinstance(answer, Mapping) and answer.get(name) is not None:
            return answer[name]
        if not isinstance(answer, tuple | list) and getattr(answer, name, None) is not None:
            return getattr(answer, name)
    if isinstance(answer, tuple | list):
        return next((item for item in reversed(answer) if item is not None and not isinstance(item, Tensor)), None)
    return None
