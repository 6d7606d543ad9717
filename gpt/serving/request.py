"""A request: its prompt, how its tokens are chosen, and the tokens that it has got."""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gpt.generate import choose

WAITING, RUNNING, FINISHED, CANCELLED = "waiting", "running", "finished", "cancelled"


@dataclass(eq=False)  # a request is equal to itself alone: two may ask for the same
class Request:
    """One prompt that is continued. `gpt.serving.Engine.submit` makes it; the engine writes `tokens` and `status`.

    `tokens` are the new tokens so far, without the prompt; a stop token is the last of them. `status` is waiting,
    running, finished or cancelled.
    """

    prompt: tuple[int, ...]
    max_new_tokens: int
    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    stop: Collection[int] = ()
    generator: torch.Generator | None = None
    """The request's own random numbers: no neighbour draws from them."""
    tokens: list[int] = field(default_factory=list)
    status: str = WAITING
    pages: list[int] = field(default_factory=list)
    """Its page table: position p is in page `pages[p // page_size]`."""
    cached: int = 0
    """The number of its positions whose keys and values are in the pages."""

    @property
    def done(self) -> bool:
        """True if no token follows."""
        return self.status in (FINISHED, CANCELLED)

    @property
    def positions(self) -> int:
        """The most positions that it caches: the last token is returned, and never read."""
        return len(self.prompt) + max(self.max_new_tokens, 1) - 1

    def next_ids(self, most: int) -> list[int]:
        """Return the ids that are not cached yet, at most so many: a part of the prompt, or the latest token."""
        start, length = self.cached, len(self.prompt)
        return list(self.prompt[start : start + most]) if start < length else self.tokens[start - length :][:most]

    @property
    def is_read(self) -> bool:
        """True if every token is cached, so that the last logits are those of the next one."""
        return self.cached == len(self.prompt) + len(self.tokens)

    def continue_from(self, logits: Tensor) -> int:
        """Choose the next token from the logits (1, V), append and return it, and set `status` if it is the last."""
        token = int(choose(logits, self.temperature, self.top_k, self.top_p, self.generator))
        self.tokens.append(token)
        if token in self.stop or len(self.tokens) == self.max_new_tokens:
            self.status = FINISHED
        return token
