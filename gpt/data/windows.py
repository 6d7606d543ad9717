"""Windows of a text: inputs of one length, and the same positions one token on as targets."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from gpt.errors import ConfigError, TextTooShort, TokenError
from gpt.seeds import generator_of
from gpt.token_ids import IGNORED

Every = Literal["stride", "start"]


class Windows(Dataset[tuple[Tensor, Tensor]]):
    """The windows of a text, in order: an item is (ids, targets), (T) of int64 each, with targets[i] after ids[i].

    `every="stride"` puts windows side by side: each token but the first is a target exactly once. The last window may
    be short; it is filled up with id 0 and target -100, which the loss leaves out. `every="start"` has a full window
    at every position that has one.

    Raises `TextTooShort` when not even one full window fits.
    """

    def __init__(self, tokens: Tensor, length: int, *, every: Every) -> None:
        if every not in ("stride", "start"):
            raise ConfigError(f"every is {every!r}; expected 'stride' or 'start'")
        if length < 1:
            raise ConfigError(f"a window of {length} tokens has no target; expected a length of at least 1")
        if tokens.dim() != 1 or tokens.is_floating_point() or tokens.dtype == torch.bool:
            raise TokenError(f"tokens are of shape {tuple(tokens.shape)} and {tokens.dtype}; expected 1-D integers")
        if len(tokens) <= length:
            raise TextTooShort(_too_short(len(tokens), length))
        self.length, self.every = length, every
        # numpy indexes uint16 20 times faster than torch 2.13 does; both look at the same memory.
        self._tokens: np.ndarray[Any, np.dtype[Any]] = tokens.detach().cpu().numpy()

    def __len__(self) -> int:
        targets = len(self._tokens) - 1
        return -(-targets // self.length) if self.every == "stride" else targets - self.length + 1

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if not -len(self) <= index < len(self):
            raise IndexError(f"there is no window {index}; there are {len(self)}")
        ids, targets = self.batch([index % len(self)])
        return ids[0], targets[0]

    def start(self, index: int) -> int:
        """Return the position of a window's first token in the text."""
        return index * self.length if self.every == "stride" else index

    def batch(self, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return the windows of `indices`, (B, T) each, at once. -1 is no window: id 0 and target -100 throughout."""
        # No window starts behind the last token, so that all of its targets are missing.
        starts = np.array([self.start(index) if index >= 0 else len(self._tokens) for index in indices], np.int64)
        positions = starts[:, None] + np.arange(self.length + 1)  # (B, 1) + (T + 1) -> (B, T + 1)
        last = len(self._tokens) - 1
        window = self._tokens[positions.clip(max=last)]
        ids, targets = window[:, :-1].astype(np.int64), window[:, 1:].astype(np.int64)
        missing = positions[:, 1:] > last  # (B, T): positions that have no token after them
        if missing.any():
            ids[missing], targets[missing] = 0, IGNORED
        return torch.from_numpy(ids), torch.from_numpy(targets)


def windows(tokens: Tensor, *, batch: int, length: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random windows of a text and their next tokens: inputs and targets, (batch, length) each.

    Raises `TextTooShort` when the text is shorter than a window with its targets.
    """
    if len(tokens) <= length:
        raise TextTooShort(_too_short(len(tokens), length))
    generator = generator_of(seed)
    starts = torch.randint(len(tokens) - length, (batch, 1), generator=generator)  # (batch, 1)
    positions = starts + torch.arange(length)  # (batch, 1) + (length) -> (batch, length)
    return tokens[positions], tokens[positions + 1]


def _too_short(count: int, length: int) -> str:
    return (
        f"the text has {count} tokens, and a window of {length} with its targets needs {length + 1}; "
        "give a longer text or a shorter window"
    )
