"""Token ids, checked before they reach an embedding."""

import torch
from torch import Tensor

from gpt.errors import TokenError

IGNORED = -100  # a target that the loss leaves out: PyTorch's default


def check_ids(idx: Tensor, vocab_size: int, *, ignored: int | None = None) -> None:
    """Raise `TokenError` unless idx is a non-empty (B, T) of integers, each in the vocabulary or equal to `ignored`.

    The values are read on a CPU only. On a GPU, reading them would wait for the device at every step, and
    its own assertion catches the mistake there. On meta there are no values, and inside torch.compile reading
    them would split the graph in two.
    """
    if not isinstance(idx, Tensor) or idx.dtype not in (torch.int64, torch.int32):
        found = str(idx.dtype) if isinstance(idx, Tensor) else type(idx).__name__
        raise TokenError(f"token ids are {found}; expected a tensor of torch.int64")
    if idx.dim() != 2 or idx.numel() == 0:
        shape = tuple(idx.shape)
        raise TokenError(f"token ids are of shape {shape}; expected (batch, time) with at least one token")
    if torch.compiler.is_compiling() or idx.device.type != "cpu" or type(idx) is not Tensor:
        return
    low, high = (int(end) for end in idx.aminmax())
    if low >= 0 and high < vocab_size:
        return
    outside = (idx < 0) | (idx >= vocab_size)
    if ignored is not None:
        outside &= idx != ignored
    if outside.any():
        raise TokenError(
            f"token id {int(idx[outside][0])} is outside the vocabulary of {vocab_size}; expected 0 to "
            f"{vocab_size - 1}: was the text encoded for another vocabulary?"
        )
