"""The key-value cache: what attention has already computed, so that decoding does not repeat it."""

import torch
from torch import Tensor

from gpt.config import GPTConfig
from gpt.errors import CacheError, ContextError


class KVCache:
    """Keys and values of up to `positions` positions (the context, if not given) for every layer, allocated once.

    `length` is the number of positions held. Setting it to a smaller number forgets the latest ones.
    The memory is 2 * L * B * C * T elements: 37.7 MB for GPT-2 small at 1024 tokens in 16 bits.
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
        if batch_size < 1:
            raise CacheError(f"batch_size={batch_size} is not positive; give at least 1")
        positions = config.block_size if positions is None else positions
        if not 1 <= positions <= config.block_size:
            raise CacheError(f"positions={positions} is not between 1 and the context, {config.block_size}")
        shape = (config.n_layer, batch_size, config.n_head, positions, config.head_size)
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, T, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, B, H, T, D)
        self.length = 0

    def layer(self, number: int) -> "LayerCache":
        """One layer's part, to write to and read from.

        Made anew each time: kept here, it would refer back, and the memory would wait for the garbage collector.
        """
        return LayerCache(self, self.keys[number], self.values[number])

    @property
    def batch_size(self) -> int:
        """How many sequences the cache holds side by side."""
        return self.keys.size(1)

    @property
    def capacity(self) -> int:
        """The most positions that the cache can hold."""
        return self.keys.size(3)

    @property
    def bytes(self) -> int:
        """What the cache occupies in memory, full or not."""
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
                f"the cache holds {self.length} positions and {positions} more do not fit in its "
                f"{self.capacity}; positions are absolute, so start a new cache with the latest tokens"
            )


class LayerCache:
    """One layer's part of a `KVCache` (or one head's part of that): views, no memory of its own."""

    def __init__(self, cache: KVCache, keys: Tensor, values: Tensor) -> None:
        self.cache = cache
        self.keys = keys
        self.values = values

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write (..., T, D) after what is held and return everything, (..., length + T, D).

        The cache's `length` moves on once, when all layers have written.
        """
        start, new = self.cache.length, keys.size(-2)
        self.keys.narrow(-2, start, new).copy_(keys)
        self.values.narrow(-2, start, new).copy_(values)
        return self.keys.narrow(-2, 0, start + new), self.values.narrow(-2, 0, start + new)

    def head(self, number: int) -> "LayerCache":
        """One head's part: (B, H, T, D) -> (B, T, D)."""
        return LayerCache(self.cache, self.keys[:, number], self.values[:, number])


class GrowingCache(KVCache):
    """The same, concatenated: room for what is held and no more, and every step copies all of it.

    What the preallocated cache is to be compared with; for attention that does all heads at once.
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
        nothing = torch.empty(batch_size, config.n_head, 0, config.head_size, dtype=dtype, device=device)
        self.held = [(nothing, nothing) for _ in range(config.n_layer)]  # L x 2 x (B, H, length, D)

    def layer(self, number: int) -> "GrowingLayerCache":
        """One layer's part, to append to."""
        return GrowingLayerCache(self, number)

    @property
    def bytes(self) -> int:
        """What is held."""
        return sum(keys.nbytes + values.nbytes for keys, values in self.held)


class GrowingLayerCache(LayerCache):
    """One layer's part of a `GrowingCache`."""

    def __init__(self, cache: GrowingCache, number: int) -> None:
        super().__init__(cache, *cache.held[number])
        self.held, self.number = cache.held, number

    def append(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep (..., T, D) behind what is held and return everything, (..., length + T, D)."""
        length = self.cache.length
        grown = (
            torch.cat((self.keys.narrow(-2, 0, length), keys), dim=-2),
            torch.cat((self.values.narrow(-2, 0, length), values), dim=-2),
        )
        self.held[self.number] = grown
        return grown
