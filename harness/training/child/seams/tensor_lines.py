"""The user's lines that made tensors of integers: token ids and targets."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

INTEGERS = frozenset((torch.int64, torch.int32, torch.int16, torch.uint8))
# Functions that leave the tokens and their order as they are: their result has the line of what they were given.
SAME_TOKENS = frozenset(
    (
        *("to", "long", "int", "type", "cuda", "cpu", "clone", "detach", "contiguous", "pin_memory", "__get__"),
        *("view", "reshape", "flatten", "ravel", "squeeze", "unsqueeze", "unbind", "stack", "cat"),
    )
)
NONE = ("", "")
MOST_INPUTS = 64  # tensors of a list that are looked at


class TensorLines:
    """Notes, for each tensor of integers that a function of torch returns, the line on which its tokens were chosen.

    A line has the line that called its function with it: a pair.
    """

    def __init__(self, line: Callable[[], tuple[str, str]]) -> None:
        self._line = line
        self._lines: dict[int, tuple[weakref.ref[Tensor], tuple[str, str]]] = {}

    def made(self, function: Any, args: Any, result: Tensor) -> None:
        """Note the result of a function: its line, or that of its first input that has one."""
        inherits = getattr(function, "__name__", "") in SAME_TOKENS
        known = next((pair for each in _tensors(args) if (pair := self._of(each))[0]), NONE) if inherits else NONE
        self._note(result, known if known[0] else self._line())

    def of(self, tensor: Tensor) -> str:
        """Return the line of a tensor; "" if no function of torch was seen to make it."""
        return self._of(tensor)[0]

    def outer_of(self, tensor: Tensor) -> str:
        """Return the line that called the function of that line; "" likewise."""
        return self._of(tensor)[1]

    def _of(self, tensor: Tensor) -> tuple[str, str]:
        found = self._lines.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else NONE

    def written(self, tensor: Any, value: Any) -> None:
        """Note that a value is written into a tensor: its tokens are those that are written last."""
        if isinstance(tensor, Tensor) and tensor.dtype in INTEGERS:
            pair = self._of(value) if isinstance(value, Tensor) else NONE
            self._note(tensor, pair if pair[0] else self._line())

    def _note(self, tensor: Tensor, pair: tuple[str, str]) -> None:
        key = id(tensor)
        self._lines[key] = (weakref.ref(tensor, lambda _: self._lines.pop(key, None)), pair)


def _tensors(args: Any) -> Iterator[Tensor]:
    for each in args[:MOST_INPUTS] if isinstance(args, list | tuple) else ():
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, list | tuple):
            yield from (part for part in each[:MOST_INPUTS] if isinstance(part, Tensor))
