"""Token ids for a subject: from the text of the run, or seeded random ones if no text is needed."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import HarnessError
from harness.core.resources import text_tokens
from harness.core.seeds import seeded
from harness.core.sizes import Size

Tokens = Literal["text", "random"]


def batch(size: Size, tokens: Tokens, *, rows: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return inputs and targets, which are the inputs one position later: two int64 tensors (rows, length).

    Args:
        size: The size whose vocabulary the ids must fit.
        tokens: `text` for the beginning of the run's text, `random` for seeded ids.
        rows: The number of rows of the batch.
        length: The number of tokens in a row.
        seed: The seed of random ids.

    Raises:
        HarnessError: The text is too short, or its tokens do not fit the vocabulary.
    """
    if tokens == "random":
        generator = torch.Generator().manual_seed(seeded(seed))
        drawn = torch.randint(size.vocab_size, (rows, length + 1), generator=generator)
        # Both ends of the vocabulary occur: this shows a loss that ignores token 0, and a table that is one row short.
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
