"""The key-value cache: the keys and values that attention has already computed, so that decoding reuses them."""

from collections.abc import Callable
from numbers import Integral
from typing import Protocol

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.errors import CacheError, ContextError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # (..., T, D), 2 x (..., S, D) -> (..., T, D)


class CacheLayer(Protocol):
    """One layer's part of a cache, as attention uses it."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Add the new keys and values, 2 x (..., T, D), and return `attend` of q (..., T, D) over all of them."""
        ...

    def head(self, number: int) -> "CacheLayer":
        """Return one head's part: (B, H, T, D) -> (B, T, D)."""
        ...


class Cache(Protocol):
    """What the network needs of a cache: where the new tokens stand, and a part for each layer."""

    def check_room(self, config: GPTConfig, batch_size: int, positions: int) -> None:
        """Raise `CacheError` or `ContextError` unless `positions` more fit for `batch_size` sequences."""
        ...

    def next_positions(self, count: int, device: torch.device) -> Tensor:
        """Return the positions of the `count` new tokens, (T)."""
        ...

    def layer(self, number: int) -> CacheLayer:
        """Return one layer's part, for attention to add to."""
        ...

    def last(self, x: Tensor) -> Tensor:
        """Return the latest position of each sequence: (B, T, C) -> (B, 1, C)."""
        ...

    def advance(self, count: int) -> None:
        """Count the `count` new tokens as cached, after all layers have added theirs."""
        ...


class KVCache:
    """Keys and values of up to `positions` positions (by default the context) for every layer, allocated once.

    `length` is the number of cached positions. Setting it to a smaller number discards the latest ones.
    The memory is 2 * L * B * C * T elements: 37.7 MB for GPT-2 small at 1024 tokens in 16 bits.

    Raises `CacheError` for a batch size below 1, or positions outside 1 to the context.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        *,
        positions: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        positions = config.block_size if positions is None else positions
        for name, value in (("batch_size", batch_size), ("positions", positions)):
            if not isinstance(value, Integral) or isinstance(value, bool) or int(value).bit_length() > 31:
                raise CacheError(f"{name} is {_shown(value)}; expected a whole number of at most 31 bits")
        if batch_size < 1:
            raise CacheError(f"batch_size={batch_size} is not positive; give at least 1")
        if not 1 <= positions <= config.block_size:
            raise CacheError(f"positions={positions} is not between 1 and the context, {config.block_size}")
        shape = (config.n_layer, batch_size, config.n_head, positions, config.head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, T, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, T, D)
        self.length = 0

    def layer(self, number: int) -> "LayerCache":
        """Return one layer's part, for attention to append to.

        It is created at each call. Stored in the cache, it would be a reference cycle, and the memory would be
        freed only by the garbage collector.
        """
        return LayerCache(self, self.keys[number], self.values[number])

    @property
    def batch_size(self) -> int:
        """The number of sequences."""
        return self.keys.size(1)

    @property
    def capacity(self) -> int:
        """The largest number of positions that fit."""
        return self.keys.size(3)

    @property
    def bytes(self) -> int:
        """The memory in bytes, full or not."""
        return self.keys.nbytes + self.values.nbytes

    def check_room(self, config: GPTConfig, batch_size: int, positions: int) -> None:
        """Raise `CacheError` or `ContextError` unless `positions` more fit for `batch_size` sequences."""
        layers, batch, heads, room, head_size = self.keys.shape
        if batch != batch_size:
            raise CacheError(
                f"the ids have a batch of {batch_size} and the cache one of {batch}; "
                f"make a cache with new_cache({batch_size})"
            )
        found, expected = (layers, heads, head_size), (config.n_layer, config.n_head, config.head_size)
        if found != expected or room > config.block_size:
            raise CacheError(
                f"the cache is of another model: its layers, heads and head size are {found}, expected {expected}, "
                f"and its positions {room} of at most {config.block_size}; make one with model.new_cache"
            )
        if self.length + positions > self.capacity:
            raise ContextError(
                f"the cache contains {self.length} positions and {positions} more do not fit in its "
                f"{self.capacity}; positions are absolute, so start a new cache with the latest tokens"
            )

    def next_positions(self, count: int, device: torch.device) -> Tensor:
        """Return the positions of the `count` new tokens, (T)."""
        return torch.arange(self.length, self.length + count, device=device)

    def last(self, x: Tensor) -> Tensor:
        """Return the latest position of each sequence: (B, T, C) -> (B, 1, C)."""
        return x[:, -1:]

    def advance(self, count: int) -> None:
        """Count the `count` new tokens as cached, after all layers have added theirs."""
        self.length += count


def _shown(value: object) -> str:
    """Return a value as a message shows it; an int may have more digits than Python shows."""
    return f"an int of {value.bit_length()} bits" if type(value) is int else f"{value!r}, a {type(value).__name__}"


class LayerCache:
    """One layer's part of a `KVCache`, or one head's part of a layer's: views, without memory of their own."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self.cache = cache
        self.keys = keys
        self.values = values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Append the new keys and values, 2 x (..., T, D), and return `attend` of q (..., T, D) over all of them."""
        return attend(q, *self.append(k, v))

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (..., T, D) after the cached positions and return all of them, (..., length + T, D).

        This leaves the cache's `length` as it is; the network adds to it once, after all layers have written.
        """
        start, new = self.cache.length, keys.size(-2)
        self.keys.narrow(-2, start, new).copy_(keys)
        self.values.narrow(-2, start, new).copy_(values)
        return self.keys.narrow(-2, 0, start + new), self.values.narrow(-2, 0, start + new)

    def head(self, number: int) -> "LayerCache":
        """Return one head's part: (B, H, T, D) -> (B, T, D)."""
        return LayerCache(self.cache, self.keys[:, number], self.values[:, number])


class GrowingCache(KVCache):
    """A cache that concatenates: it has room for the cached positions only, and every step copies all of them.

    It exists to compare the preallocated cache with, for attention that computes all heads at once.
    """

    def __init__(
        self,
        config: GPTConfig,
        batch_size: int,
        *,
        positions: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if config.attention == "looped":
            raise CacheError("looped attention writes a cache head by head; a growing one is for naive and flash")
        super().__init__(config, batch_size, positions=positions, dtype=dtype, device="meta")  # sizes, without memory
        empty = torch.empty(batch_size, config.n_head, 0, config.head_size, dtype=dtype, device=device)
        self.layers = [(empty, empty) for _ in range(config.n_layer)]  # L x 2 x (B, H, length, D)

    def layer(self, number: int) -> "GrowingLayerCache":
        """Return one layer's part, for attention to append to."""
        return GrowingLayerCache(self, number)

    @property
    def bytes(self) -> int:
        """The memory in bytes of the cached positions."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.layers)


class GrowingLayerCache(LayerCache):
    """One layer's part of a `GrowingCache`."""

    def __init__(self, cache: GrowingCache, number: int) -> None:
        super().__init__(cache, *cache.layers[number])
        self.layers, self.number = cache.layers, number

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Concatenate (..., T, D) to the cached positions and return all of them, (..., length + T, D)."""
        length = self.cache.length
        grown = (
            torch.cat((self.keys.narrow(-2, 0, length), keys), dim=-2),
            torch.cat((self.values.narrow(-2, 0, length), values), dim=-2),
        )
        self.layers[self.number] = grown
        return grown
