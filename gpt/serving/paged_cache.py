"""The paged cache: keys and values of many requests in pages of one size, and what one step reads of them.

The letters: N tokens of all requests in one packed row, H heads of size D, P pages of S positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt.cache import Attend
from gpt.config import GPTConfig
from gpt.errors import CacheError, ServingError


class PagedCache:
    """Memory for `pages` x `page_size` positions, allocated once, and the list of the pages that are free.

    A request owns whole pages, in any order; its page table says which. No page has two owners, so at most
    `page_size` - 1 positions of each request are unused (Kwon et al. 2023, "PagedAttention").

    Raises `ServingError` for a number of pages or a page size below 1.
    """

    def __init__(
        self,
        config: GPTConfig,
        pages: int,
        page_size: int,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if pages < 1 or page_size < 1:
            raise ServingError(f"{pages} pages of {page_size} positions; expected at least 1 of each")
        shape = (config.n_layer, 1, config.n_head, pages, page_size, config.head_size)
        self.config = config
        self.keys = torch.empty(shape, dtype=dtype, device=device)  # (L, 1, H, P, S, D)
        self.values = torch.empty(shape, dtype=dtype, device=device)  # (L, 1, H, P, S, D)
        self.page_size = page_size
        self.free = list(range(pages - 1, -1, -1))  # the last one is taken first: what was freed last is in the cache

    @property
    def pages(self) -> int:
        """The number of pages, free or not."""
        return self.keys.size(3)

    def pages_for(self, positions: int) -> int:
        """Return the number of pages that so many positions need."""
        return -(-positions // self.page_size)

    def take(self, count: int) -> list[int]:
        """Return `count` free pages, which the caller then owns."""
        assert count <= len(self.free), "the scheduler takes no more than are free"
        return [self.free.pop() for _ in range(count)]

    def give_back(self, pages: list[int]) -> None:
        """Free the pages and empty the table, so that it cannot be read again."""
        assert not set(pages) & set(self.free), "a page is freed once"
        self.free.extend(reversed(pages))
        pages.clear()


@dataclass(frozen=True)
class Span:
    """The part of a step that belongs to one request: `count` new tokens after `start` cached ones."""

    pages: Sequence[int]
    start: int
    count: int


class RaggedStep:
    """The cache of one forward pass over a packed row (1, N): the new tokens of several requests, one after another.

    Everything but attention treats positions separately, so the row needs no padding. Attention is computed for each
    request alone, with its own keys and values: those of another request, and unused positions, are not even read.
    """

    def __init__(self, cache: PagedCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.spans = spans
        device, size = cache.keys.device, cache.page_size
        self.counts = [span.count for span in spans]
        self.positions = torch.cat([torch.arange(s.start, s.start + s.count) for s in spans]).to(device)  # (N)
        self.tables = [torch.tensor(s.pages[: cache.pages_for(s.start + s.count)], device=device) for s in spans]
        # Where each new token goes: its page, and the place in that page.
        owners = torch.split_with_sizes(self.positions, self.counts)
        self.page = torch.cat([table[at // size] for table, at in zip(self.tables, owners, strict=True)])  # (N)
        self.place = self.positions % size  # (N)
        self.ends = torch.tensor(self.counts, device=device).cumsum(0) - 1  # of each request, in the row

    def check_room(self, config: GPTConfig, batch_size: int, positions: int) -> None:
        """Raise `CacheError` unless the ids are one packed row of these requests, for a model of the cache's shape."""
        if config != self.cache.config:
            raise CacheError("the pages were made for a model of another configuration; make an engine for this one")
        if (batch_size, positions) != (1, sum(self.counts)):
            raise CacheError(f"the ids are ({batch_size}, {positions}); expected one row of {sum(self.counts)} tokens")

    def next_positions(self, count: int, device: torch.device) -> Tensor:
        """Return the position of each token within its own request, (N)."""
        return self.positions.to(device)

    def layer(self, number: int) -> "PagedLayer":
        """Return one layer's pages, for attention to add to."""
        return PagedLayer(self, self.cache.keys[number], self.cache.values[number])

    def last(self, x: Tensor) -> Tensor:
        """Return the latest position of each request: (1, N, C) -> (1, requests, C)."""
        return x[:, self.ends]

    def advance(self, count: int) -> None:
        """Do nothing: each request counts its own positions."""


class PagedLayer:
    """One layer's pages in one step, (1, H, P, S, D), or one head's, (1, P, S, D): views of the cache's memory."""

    def __init__(self, step: RaggedStep, keys: Tensor, values: Tensor) -> None:
        self.step = step
        self.keys = keys
        self.values = values

    def attend(self, q: Tensor, k: Tensor, v: Tensor, attend: Attend) -> Tensor:
        """Write k and v (..., N, D) into the pages, and return `attend` of each request's queries over its own keys."""
        step = self.step
        self.keys[..., step.page, step.place, :] = k
        self.values[..., step.page, step.place, :] = v
        queries = torch.split_with_sizes(q, step.counts, dim=-2)  # (..., N, D) -> of each request, (..., T, D)
        parts = [
            attend(own, self.read(self.keys, table, span), self.read(self.values, table, span))
            for own, table, span in zip(queries, step.tables, step.spans, strict=True)
        ]
        return torch.cat(parts, dim=-2)  # of each request, (..., T, D) -> (..., N, D)

    def read(self, memory: Tensor, table: Tensor, span: Span) -> Tensor:
        """Return one request's positions, the new ones included: (..., P, S, D) -> (..., start + count, D)."""
        own = memory.index_select(-3, table).flatten(-3, -2)  # (..., P, S, D) -> (..., own pages x S, D)
        return own.narrow(-2, 0, span.start + span.count)

    def head(self, number: int) -> "PagedLayer":
        """Return one head's part: (1, H, P, S, D) -> (1, P, S, D)."""
        return PagedLayer(self.step, self.keys[:, number], self.values[:, number])
