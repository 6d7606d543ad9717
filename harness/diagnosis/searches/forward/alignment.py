"""Alignment of a subject's steps with the formula: which step computed the value of which place."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.diagnosis.observation import SAME, Observation, Sums, sums, sums_agree, varies
from harness.oracle.formula import Formula, Replacement
from harness.oracle.variants import Variant

T = TypeVar("T")
Weights = dict[str, Tensor]  # published names, float64
Taps = dict[str, Any]  # place -> what the formula computed there, in execution order


class Alignment:
    """The steps of one observed forward pass, matched by value with the places of the formula.

    A step matches a place if its tensor has the place's values, the axes in any order. `anchors` are the places at
    which progress is measured, in execution order: the residual stream after each sum, the final norm and the logits.
    `given`: replacements by the subject's own values, which every formula has. `deadline`: the CPU time of this process
    in seconds at which searches that take long end with what they have. `unlisted`: variants of this call's own,
    which are tried first.
    """

    def __init__(
        self,
        observed: Observation,
        ids: Tensor,
        weights: Weights,
        size: Size,
        given: Sequence[Replacement] = (),
        deadline: float = math.inf,
        unlisted: Sequence[Variant] = (),
    ) -> None:
        self.deadline, self.unlisted = deadline, unlisted
        self.observed, self.ids, self.weights, self.size, self.given = observed, ids, weights, size, given
        in_blocks = [f"h.{layer}{part}" for layer in range(size.layers) for part in (".residual.attn", "")]
        self.anchors = ["embedding", *in_blocks, "ln_f", "head"]
        self._answers: dict[Hashable, Any] = {}
        self._fingerprinted: Taps = {}
        self._fingerprints: list[tuple[int, Sums]] = []

    @property
    def is_late(self) -> bool:
        """True after the deadline."""
        return time.process_time() > self.deadline

    def once(self, question: Hashable, answer: Callable[[], T]) -> T:
        """Return `answer()`, computed once for each question: every search begins with what the last one tried."""
        if question not in self._answers:
            self._answers[question] = answer()
        found: T = self._answers[question]
        return found

    def taps(self, changes: Sequence[Replacement]) -> Taps:
        """Return the value of every place, computed by the formula with `changes`; {} if they do not go together."""
        formula = Formula(self.size, self.weights, [*changes, *self.given])
        try:
            formula(self.ids)
        except (RuntimeError, IndexError, KeyError):
            return {}
        return formula.taps

    def step_of(self, taps: Taps, name: str) -> int | None:
        """Return the step that computed the value of a place; None if no step did."""
        value = taps.get(name)
        if isinstance(value, tuple):  # queries, keys and values
            steps = [self.observed.find(part) for part in value]
            return None if None in steps else max(step for step in steps if step is not None)
        return None if value is None else self.observed.find(value)

    def step_of_first_head(self, value: Any) -> int | None:
        """Return the step that computed the first head of (B, H, T, D), for subjects that loop over their heads."""
        if isinstance(value, tuple):
            value = value[0]
        return self.observed.find(value[:, 0]) if isinstance(value, Tensor) and value.ndim == 4 else None

    def anchors_reached(self, taps: Taps) -> int:
        """Return how many anchors, in execution order, the subject passes with the values in `taps`."""
        if "head" in taps and self.logits_agree(taps["head"]):
            return len(self.anchors)
        seen = [n for n, anchor in enumerate(self.anchors[:-1]) if self.step_of(taps, anchor) is not None]
        return max(seen, default=-1) + 1

    def last_right_step(self, taps: Taps, reached: int) -> int:
        """Return the step that computed the last anchor reached; -1 if none was."""
        step = self.step_of(taps, self.anchors[reached - 1]) if reached else None
        return -1 if step is None else step

    def logits_agree(self, logits: Tensor) -> bool:
        """Return True if the subject's logits (B, T, V) are these, within float64 rounding, and not all one number."""
        difference = (self.observed.logits - logits).abs().max()
        return varies(logits) and bool(difference <= SAME * logits.abs().max())

    def anchors_confirmed(self, taps: Taps) -> int:
        """Return `anchors_reached`, but for anchors that only repeat the value of an earlier place."""
        if "head" in taps and self.logits_agree(taps["head"]):
            return len(self.anchors)
        seen = [
            n
            for n, anchor in enumerate(self.anchors[:-1])
            if self.step_of(taps, anchor) is not None and not self.is_stale(taps, anchor)
        ]
        return max(seen, default=-1) + 1

    def is_stale(self, taps: Taps, name: str) -> bool:
        """Return True if an earlier place has the same value."""
        value, names = taps[name], list(taps)
        earlier = names[: names.index(name)]
        if name.count(".") == 1 and earlier and taps[earlier[-1]] is value:
            earlier.pop()  # a block's value is that of its last operation
        return any(
            isinstance(other := taps[place], Tensor)
            and (other is value or (other.shape == value.shape and torch.equal(other, value)))
            for place in earlier
        )

    def steps_matched(self, taps: Taps, layer: int, after: int) -> set[int]:
        """Return the steps after `after` that computed a value of this layer."""
        steps = {self.step_of(taps, name) for name in taps if name.startswith(f"h.{layer}.")}
        return {step for step in steps if step is not None and step > after}

    def values_matched(self, changes: Sequence[Replacement]) -> int:
        """Return how many of the subject's steps compute the value of a place of the formula with `changes`."""
        taps = self.taps(changes)
        return len({step for name in taps if (step := self.step_of(taps, name)) is not None})

    def unknown_values(self, expected: Tensor, after: int, taps: Taps) -> list[Tensor]:
        """Return the subject's values after a step that have the shape of `expected` and are not in `taps`."""
        values = [
            tensor
            for number, tensor in self.observed.like(expected)
            if number > after and not self._is_known(self.observed.steps[number].tensor, taps)
        ]
        return [*values, self.observed.logits] if expected.shape == self.observed.logits.shape else values

    def first_unknown_step(self, taps: Taps, after: int) -> int | None:
        """Return the first step after `after` whose value the formula does not compute."""
        return next(
            (
                number
                for number in range(after + 1, len(self.observed.steps))
                if not self._is_known(self.observed.steps[number].tensor, taps)
            ),
            None,
        )

    def place_of(self, step: int, changes: Sequence[Replacement] = ()) -> tuple[str, str, Tensor | None]:
        """Return the last place matched before a step, the place after it, and the value of the former."""
        taps = self.taps(changes)
        order = [name for name in taps if name not in ("model", "blocks")]
        before = [name for name in order if (seen := self.step_of(taps, name)) is not None and seen < step]
        last = max((order.index(name) for name in before), default=-1)
        value = taps[order[max(last, 0)]]
        return order[max(last, 0)], order[min(last + 1, len(order) - 1)], value if isinstance(value, Tensor) else None

    def _is_known(self, tensor: Tensor, taps: Taps) -> bool:
        """Return True if the formula computes this value as well, or if it is a weight."""
        own = sums(tensor)
        fingerprints = self._fingerprints_of(taps)
        return any(count == tensor.numel() and sums_agree(own, other, SAME) for count, other in fingerprints)

    def _fingerprints_of(self, taps: Taps) -> list[tuple[int, Sums]]:
        if self._fingerprinted is not taps:  # compared by identity with the dict itself: an id may be used again
            self._fingerprinted = taps
            values = [part for value in taps.values() for part in (value if isinstance(value, tuple) else (value,))]
            values += list(self.weights.values())
            self._fingerprints = [(value.numel(), sums(value)) for value in values]
        return self._fingerprints


def place_of(
    step: int, observed: Observation, ids: Tensor, weights: Weights, size: Size
) -> tuple[str, str, Tensor | None]:
    """Return the last place of GPT-2 matched before a step, the place after it, and the value of the former."""
    return Alignment(observed, ids, weights, size).place_of(step)


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest absolute difference of two tensors of one size, flattened; NaN if their sizes differ."""
    if found.numel() != expected.numel():
        return float("nan")
    difference = (found.reshape(-1) - expected.reshape(-1)).abs()
    # Equal infinities have the difference NaN.
    return float(torch.where(found.reshape(-1) == expected.reshape(-1), 0.0, difference).max())


def is_in_block(operation: str) -> bool:
    """Return True if the operation exists once in every layer."""
    return operation.startswith(("ln_1", "ln_2", "attn", "mlp", "residual", "block")) and operation != "blocks"
