"""Masks that no table lists: keys hidden by their position, and other triangles."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.oracle.formula import Operation, visible
from harness.oracle.variants.variant import Variant

Seen = Callable[[int, int], Tensor]  # T queries, S keys -> (T, S), true where a query sees a key


def other_masks() -> Iterator[Variant]:
    """Yield masks that hide keys by their position, and other triangles."""
    for says, seen in _masks():
        yield Variant("", "attn.mask", says, _masked(seen))


def _masks() -> Iterator[tuple[str, Seen]]:
    for step in (2, 3, 4, 5, 8):
        for first in range(step):
            which = f"every key whose position is {first} modulo {step}"
            keys = functools.partial(_every, step, first)
            yield f"the mask hides {which}", functools.partial(_without, keys, False)
            yield f"the mask hides {which} from the others", functools.partial(_without, keys, True)
    for size in (2, 3, 4, 5, 8, 16, 32, 64):
        says = f"the mask hides the keys of the last group of {size}, if it is incomplete"
        yield says, functools.partial(_without, functools.partial(_tail, size), False)
    for start in (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 28):
        late = functools.partial(_from, start)
        yield f"the mask hides every key from position {start} on", functools.partial(_without, late, False)
        yield (
            f"the mask hides every key from position {start} on from the others",
            functools.partial(_without, late, True),
        )
    for position in (1, 2, -1, -2):
        says = f"the mask hides the key at position {position} from the others"
        yield says, functools.partial(_without, functools.partial(_only, position), True)
    for ahead in (3, 4, 8):
        yield f"the mask lets every position see {ahead} ahead", functools.partial(_ahead, ahead)
    for length in (1, 2, 3, 4, 5, 6, 8, 12, 16, 24, 32):
        yield f"positions see only their own group of {length}", functools.partial(_in_groups, length)
        yield f"within the first {length} positions everything is seen", functools.partial(_prefix, length)


def _every(step: int, first: int, S: int) -> Tensor:
    return torch.arange(S) % step == first


def _tail(size: int, S: int) -> Tensor:
    return torch.arange(S) >= max(S // size * size, size)


def _from(start: int, S: int) -> Tensor:
    return torch.arange(S) >= start


def _only(position: int, S: int) -> Tensor:
    return torch.arange(S) == position % S


def _without(keys: Callable[[int], Tensor], from_others: bool, T: int, S: int) -> Tensor:
    """Return GPT-2's mask without some keys; with `from_others`, every position still sees itself."""
    hidden = keys(S).expand(T, S)
    return visible(T, S) & ~(hidden & ~torch.eye(T, S, dtype=torch.bool) if from_others else hidden)


def _ahead(number: int, T: int, S: int) -> Tensor:
    return torch.ones(T, S, dtype=torch.bool).tril(S - T + number)


def _in_groups(length: int, T: int, S: int) -> Tensor:
    return visible(T, S) & (torch.arange(T)[:, None] // length == torch.arange(S) // length)


def _prefix(length: int, T: int, S: int) -> Tensor:
    return visible(T, S) | ((torch.arange(T)[:, None] < length) & (torch.arange(S) < length))


def _masked(seen: Seen) -> Operation:
    return lambda at, scores: scores.masked_fill(~seen(*scores.shape[-2:]), -math.inf)
