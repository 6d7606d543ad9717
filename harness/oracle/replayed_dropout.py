"""Dropout in the formula: the masks that a subject drew, found by value and applied at the same places.

A subject's dropout is that of a place of GPT-2 if it drops from the value that the formula computes there. So no names
and no order of a subject's modules matter, and a dropout at a place where GPT-2 has none is replayed as well.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.subjects.random_draws import Drop

# Relative. A program whose constants have eight digits is GPT-2 to float32, and differs from it by some 1e-8.
NEAR = 1e-6
# The places at which GPT-2 drops (Radford et al., 2018; resid_pdrop, embd_pdrop and attn_pdrop of the checkpoints).
GPT2_SITES = ("embedding", "attn.softmax", "attn.c_proj", "mlp.c_proj")
# A composite returns what its last part returned: a second dropout there.
_LAST_PARTS = {"attn": "attn.c_proj", "mlp": "mlp.c_proj", "block": "residual.mlp", "model": "head"}
Replay = Callable[[str, int | None, Any], Any]  # operation, layer, its output -> the output with dropout

_replay: contextvars.ContextVar[Replay | None] = contextvars.ContextVar("replayed dropout", default=None)


@dataclass(frozen=True)
class Mask:
    """What one dropout does to a value, in the value's own shape.

    Attributes:
        factor: What each element is multiplied with, float64; 0 where it is dropped.
        fill: The value of what is dropped: 0, or minus infinity for scores.
        known: Where it shows whether an element is dropped: not where the element is 0.
        drops: The subject's own operations that do it: one, or one for each head or row.
    """

    factor: Tensor
    fill: float
    known: Tensor
    drops: tuple[Drop, ...]

    def __call__(self, value: Tensor) -> Tensor:
        """Return the value with the dropout."""
        factor = self.factor.to(value.dtype)
        return torch.where(factor == 0, self.fill, value * factor)

    @property
    def scale(self) -> float:
        """The factor of what is kept; 1 if nothing is."""
        return float(self.factor.max()) or 1.0

    @property
    def dropped(self) -> Tensor:
        """True where an element is dropped."""
        return self.factor == 0


Masks = Mapping[tuple[str, int | None], Sequence[Mask]]  # by operation and layer, in the order of application


def with_dropout(operation: str, layer: int | None, output: Any) -> Any:
    """Return what an operation of the formula returns, with the dropout that is replayed there."""
    replay = _replay.get()
    return output if replay is None else replay(operation, layer, output)


@contextlib.contextmanager
def replaying(replay: Replay) -> Iterator[None]:
    """Apply dropout in every formula inside the block."""
    token = _replay.set(replay)
    try:
        yield
    finally:
        _replay.reset(token)


def masks_at_places(masks: Masks) -> Replay:
    """Return the replay of given masks."""

    def replay(operation: str, layer: int | None, output: Any) -> Any:
        if isinstance(output, tuple):
            return tuple(replay(f"{operation}.{name}", layer, part) for name, part in zip("qkv", output, strict=False))
        for mask in masks.get((_site(operation), layer), ()):
            if operation == _site(operation):
                output = mask(output)
        return output

    return replay


@dataclass
class MasksByValue:
    """The replay of a subject's drops wherever the formula computes the value that is dropped from.

    `masks` are those found in the last formula that ran. A drop whose result nothing uses is none.
    """

    drops: Sequence[Drop]
    masks: dict[tuple[str, int | None], list[Mask]] = field(default_factory=dict)
    _by_count: dict[int, list[Drop]] = field(default_factory=dict, repr=False)
    _indexed: int = field(default=0, repr=False)  # drops that are in it: more come
    _prints: dict[int, tuple[int, float, float]] = field(default_factory=dict, repr=False)

    def __call__(self, operation: str, layer: int | None, output: Any) -> Any:
        """Return the output of an operation with the dropouts that drop from it."""
        if isinstance(output, tuple):
            return tuple(self(f"{operation}.{name}", layer, part) for name, part in zip("qkv", output, strict=False))
        if operation == "embedding.token":
            self.masks.clear()  # a formula begins
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return output
        taken: list[Drop] = []
        while (mask := self._mask_of(output, taken) or self._of_powers(operation, output, taken)) is not None:
            self.masks.setdefault((_site(operation), layer), []).append(mask)
            taken += mask.drops
            output = mask(output)
        return output

    @property
    def unexplained(self) -> list[Drop]:
        """The drops that are at no place of the last formula, in the order of execution."""
        found = {id(drop) for masks in self.masks.values() for mask in masks for drop in mask.drops}
        return [drop for drop in self.drops if id(drop) not in found and drop.used]

    def _mask_of(self, value: Tensor, taken: Sequence[Drop]) -> Mask | None:
        """Return the mask of the value, of all at once, or of each head or row by itself; None if there is none."""
        found = self._whole(value.detach(), taken)
        for axis in (1, 0) if value.ndim == 4 else (0,) if value.ndim == 3 else ():
            if found is None:
                found = self._part_by_part(value.detach(), taken, axis)
        return found

    def _of_powers(self, operation: str, value: Tensor, taken: Sequence[Drop]) -> Mask | None:
        """Return the mask of attention weights that are dropped before they are divided by their sum, as powers."""
        if operation != "attn.softmax":
            return None
        for drop in self._usable(value.numel(), taken):
            if (mask := _mask_of_powers(value, drop)) is not None:
                return mask
        return None

    def _part_by_part(self, value: Tensor, taken: Sequence[Drop], axis: int) -> Mask | None:
        """Return the mask of a value whose rows, or heads, are dropped from one by one."""
        found = None
        if self._usable(value.numel() // value.shape[axis], taken):
            found = _joined([self._whole(part, taken) for part in value.unbind(axis)], value, axis)
        if found is None and axis == 0 and value.ndim == 4:  # (B, H, T, T), each head of each row
            found = _joined([self._part_by_part(row, taken, 0) for row in value], value, 0)
        return found

    def _whole(self, value: Tensor, taken: Sequence[Drop]) -> Mask | None:
        likely = self._usable(value.numel(), taken)
        own = _print(value) if likely else None
        for drop in likely:
            if own is not None and _alike(own, self._print_of(drop)) and (mask := _mask(value, drop)) is not None:
                return mask
        return None

    def _usable(self, count: int, taken: Sequence[Drop]) -> list[Drop]:
        """Return the drops from so many values that are used, and not taken: there are thousands of comparisons."""
        for drop in itertools.islice(self.drops, self._indexed, None):
            self._indexed += 1
            if drop.before is not None:
                self._by_count.setdefault(drop.before.numel(), []).append(drop)
        found = self._by_count.get(count, ())
        return [drop for drop in found if drop.used and all(drop is not other for other in taken)]

    def _print_of(self, drop: Drop) -> tuple[int, float, float]:
        if id(drop) not in self._prints:
            assert drop.before is not None
            self._prints[id(drop)] = _print(drop.before)
        return self._prints[id(drop)]


def _site(operation: str) -> str:
    return _LAST_PARTS.get(operation, operation)


def _print(value: Tensor) -> tuple[int, float, float]:
    """Return a fingerprint that neither a factor nor the order of the values changes."""
    finite = torch.nan_to_num(value.double(), nan=0.0, posinf=0.0, neginf=0.0)
    size = float(finite.abs().sum())
    return value.numel(), float(finite.sum()) / (size or 1.0), float((finite * finite).sum()) / (size * size or 1.0)


def _alike(a: tuple[int, float, float], b: tuple[int, float, float]) -> bool:
    return a[0] == b[0] and abs(a[1] - b[1]) <= NEAR and abs(a[2] - b[2]) <= NEAR * max(a[2], 1e-300)


def _mask_of_powers(weights: Tensor, drop: Drop) -> Mask | None:
    """Return the mask if the drop's value, divided by its sum over the keys, is the attention weights (B, H, T, S)."""
    assert drop.before is not None
    powers = drop.before.reshape(weights.shape)
    if not bool(((powers / powers.sum(-1, keepdim=True) - weights.detach()).abs() <= NEAR).all()):
        return None
    if (multiple := drop.multiple()) is None:
        return None
    kept, scale, fill = multiple
    return Mask((kept.double() * scale).reshape(weights.shape), fill, powers != 0, (drop,))


def _mask(value: Tensor, drop: Drop) -> Mask | None:
    """Return the mask if the drop's value is this one, times a factor, its axes in any order."""
    assert drop.before is not None
    multiple = drop.multiple()
    before = drop.before.reshape(-1)
    finite = before.isfinite()
    if multiple is None or not bool(finite.any()):
        return None
    kept, scale, fill = multiple
    ratio = float(before[finite].abs().sum()) / (float(value[value.isfinite()].abs().sum()) or 1.0)
    if abs(ratio - 1) <= NEAR:
        ratio = 1.0
    elif ratio < 1 or scale != 1:  # what is kept may be scaled before the rest is dropped
        return None
    size = NEAR * float(before[finite].abs().max())
    for order in itertools.permutations(range(value.ndim)):
        moved = value.permute(order)
        own = (moved.reshape(-1) * ratio).double()
        if bool(((own - before).abs() <= size).logical_or(own == before).all()):
            back = [order.index(axis) for axis in range(value.ndim)]
            factor = (kept.double() * (scale * ratio)).reshape(moved.shape).permute(back)
            known = (before != 0).reshape(moved.shape).permute(back)
            return Mask(factor, fill, known, (drop,))
    return None


def _joined(parts: Sequence[Mask | None], value: Tensor, axis: int) -> Mask | None:
    """Return the mask of a value whose parts along an axis have these; None if no part has one."""
    found = [part for part in parts if part is not None]
    if not found:
        return None
    whole = torch.ones_like(value.select(axis, 0), dtype=torch.float64)
    return Mask(
        torch.stack([whole if part is None else part.factor for part in parts], axis),
        found[0].fill,
        torch.stack([whole.bool() if part is None else part.known for part in parts], axis),
        tuple(drop for part in found for drop in part.drops),
    )
