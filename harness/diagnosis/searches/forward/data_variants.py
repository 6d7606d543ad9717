"""Variants read off the subject's own values: the mask that it has, and a variant where exactly some values have it."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.observation import SAME
from harness.diagnosis.searches.forward import where
from harness.diagnosis.searches.forward.alignment import Alignment, Taps
from harness.oracle.formula import At, operation_of, visible
from harness.oracle.variants import Variant
from harness.oracle.variants.partial import OPERATIONS_WITH_HEADS

MOST_MASKS = 12
MOST_TOKENS = 80
NEVER = -1e4  # a masked score: weights of e^-10000 are exact zeros
SCORES = ("attn.scores", "attn.scale", "attn.mask", "attn.softmax")


def own_masks(alignment: Alignment, taps: Taps, layer: int) -> Iterator[Variant]:
    """Yield the masks that the subject's values and its tensors of booleans have, other than the causal one."""
    scores = taps.get(f"h.{layer}.attn.softmax")
    if not isinstance(scores, Tensor):
        return
    causal = visible(*scores.shape[-2:]).expand_as(scores)
    masks: dict[bytes, Tensor] = {_key(causal): causal}
    for like in itertools.islice(_masks_like(alignment, scores), 4 * MOST_MASKS):
        for seen in (like, like & causal):
            if bool(seen.any()) and not bool(seen.all()) and len(masks) <= MOST_MASKS:
                masks.setdefault(_key(seen), seen)
    found = [(seen, f"the mask {where.mask_in_words(seen, alignment.ids)}") for seen in list(masks.values())[1:]]
    for seen, says in found:
        yield Variant("", "attn.mask", says, _masked(seen), bound=True)
    for seen, says in found:
        if not bool((seen & ~causal).any()):  # the softmax reads scores that have the causal mask
            zeros = f"{says}; a query that sees no key has zeros"
            yield Variant("", "attn.softmax", zeros, _masked_or_zero(seen), "attn.mask", bound=True)
            after = f"the weights are masked after the softmax: {says}"
            yield Variant("", "attn.softmax", after, _masked_after(seen), bound=True)


def _masks_like(alignment: Alignment, scores: Tensor) -> Iterator[Tensor]:
    """Yield what may be a mask of the scores (B, H, T, S), true where a query sees a key."""
    for _, value in alignment.observed.like(scores):
        finite = value.nan_to_num(nan=NEVER) > NEVER
        yield finite
        yield value != 0
    for mask in alignment.observed.masks:
        if mask.ndim == 3:
            mask = mask[:, None]
        try:
            whole = mask.expand_as(scores)
        except RuntimeError:
            continue
        yield whole
        yield ~whole


def _key(mask: Tensor) -> bytes:
    return mask.contiguous().numpy().tobytes()


def _masked(seen: Tensor) -> Callable[..., Tensor]:
    return lambda at, scores: scores.masked_fill(~seen, -math.inf)


def _masked_or_zero(seen: Tensor) -> Callable[..., Tensor]:
    def softmax(at: At, scores: Tensor) -> Tensor:
        return scores.masked_fill(~seen, -math.inf).softmax(-1).nan_to_num(0.0)

    return softmax


def _masked_after(seen: Tensor) -> Callable[..., Tensor]:
    return lambda at, scores: scores.softmax(-1) * seen


def token_masks(ids: Tensor) -> Iterator[Variant]:
    """Yield the masks that hide the keys of one token, for a subject whose mask is no tensor of its own."""
    for token in ids.unique().tolist()[:MOST_TOKENS]:
        for others in (False, True):
            says = f"the mask hides the keys whose token is {token}{' from other positions' * others}"
            yield Variant("", "attn.mask", says, functools.partial(_without_token, ids, token, others), bound=True)


def _without_token(ids: Tensor, token: int, others: bool, at: At, scores: Tensor) -> Tensor:
    T, S = scores.shape[-2:]
    hidden = (ids == token)[:, None, None, :].expand(-1, 1, T, S)
    hidden = hidden & ~torch.eye(T, S, dtype=torch.bool) if others else hidden
    return scores.masked_fill(hidden | ~visible(T, S), -math.inf)


class PartsSeen:
    """The subject's values that agree with GPT-2's in some places and not in others, by place of the formula."""

    def __init__(self, alignment: Alignment, taps: Taps, places: Iterable[str], passed: int) -> None:
        self.alignment, self.taps = alignment, taps
        self.seen: dict[str, list[tuple[Tensor, Tensor]]] = {}  # the subject's value, and where it differs
        for name in places:
            expected = taps.get(name)
            if not isinstance(expected, Tensor) or expected.ndim < 3:
                continue
            size = float(expected[expected.isfinite()].abs().max())
            for number, value in alignment.observed.like(expected):
                if number > passed:
                    differs = ~((value - expected).abs() <= SAME * size) & (value != expected)
                    differs &= ~(value.isnan() & expected.isnan())
                    if 0 < float(differs.double().mean()) < 0.98:
                        self.seen.setdefault(name, []).append((value, differs))

    def restricted(self, variant: Variant, place: str, with_it: Taps) -> Variant | None:
        """Return the variant restricted to the places at which a value of the subject's has it; None if none has.

        `place`: where the variant's operation is. `with_it`: the formula's values with the variant everywhere.
        """
        for name, values in self.seen.items():
            found = with_it.get(name)
            if not isinstance(found, Tensor) or name not in self.taps or found.shape != self.taps[name].shape:
                continue
            size = float(self.taps[name][self.taps[name].isfinite()].abs().max())
            for value, differs in values:
                own, other = value[differs], found[differs]
                if not bool(((own - other).abs() <= SAME * size).logical_or(own == other).all()):
                    continue
                pattern = differs if name == place else _rows_and_positions(differs)
                if (said := self._words(variant, pattern)) and pattern is not None:
                    return _in_pattern(variant, pattern, said)
        return None

    def _words(self, variant: Variant, pattern: Tensor | None) -> str:
        if pattern is None:
            return ""
        scores = variant.operation in SCORES
        if pattern.ndim == 2:  # rows and positions
            pattern = pattern[..., None]
            scores = False
        width = self.alignment.size.head_width if pattern.shape[-1] == self.alignment.size.width else 0
        return where.in_words(pattern, self.alignment.ids, head_width=width, scores=scores)


def _rows_and_positions(differs: Tensor) -> Tensor | None:
    """Return the pattern (B, T) of a value of the stream that differs in whole positions; None for another."""
    if differs.ndim != 3:
        return None
    found = differs.any(-1)
    return None if bool(found.all()) else found


def _in_pattern(variant: Variant, pattern: Tensor, said: str) -> Variant:
    """Return the variant where the pattern is true, and GPT-2 elsewhere."""
    gpt2 = operation_of(variant.operation)

    def function(at: At, *inputs: Any) -> Any:
        right, wrong = gpt2(at, *inputs), variant.function(at, *inputs)
        if isinstance(right, tuple):
            return tuple(_mixed(pattern, a, b, heads=True) for a, b in zip(right, wrong, strict=True))
        return _mixed(pattern, right, wrong, heads=variant.operation in OPERATIONS_WITH_HEADS)

    says = f"{variant.says}, only at {said}"
    return Variant(variant.fault, variant.operation, says, function, variant.where, bound=True)


def _mixed(pattern: Tensor, right: Tensor, wrong: Tensor, *, heads: bool) -> Tensor:
    if pattern.ndim == 2:
        pattern = pattern[:, None, :, None] if heads else pattern[..., None]
    return torch.where(pattern, wrong, right)
