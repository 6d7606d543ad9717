"""Token ids to feed a subject: from the run's text, or seeded ones where no text is needed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import HarnessError
from harness.core.resources import text_tokens
from harness.core.sizes import Size

Tokens = Literal["text", "random"]


def batch(size: Size, tokens: Tokens, *, rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Inputs and their targets, one position on: two (rows, length) int64 tensors. Text begins at its beginning."""
    if tokens == "random":
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randint(size.vocab_size, (rows, length + 1), generator=generator)
        # Both ends of the vocabulary occur: a loss that ignores token 0 shows, and a table that is one row short.
        drawn[0, 1:3] = torch.tensor([0, size.vocab_size - 1])[:length]
        return drawn[:, :-1].contiguous(), drawn[:, 1:].contiguous()
    stream = text_tokens()
    needed = rows * length + 1
    if len(stream) < needed:
        raise HarnessError(
            f"the text has {len(stream):,} tokens; this check needs {needed:,}: name a longer one with --text"
        )
    if size.vocab_size <= int(stream[:needed].max()):
        raise HarnessError(
            f"the text's tokens do not fit a vocabulary of {size.vocab_size}: use tokens = 'random' at this size"
        )
    return stream[: needed - 1].view(rows, length), stream[1:needed].view(rows, length)
