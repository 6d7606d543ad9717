"""Two runs of a program, step by step: where they differ first, and in what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from harness.training.events import Forward
from harness.training.optimizer_steps import Step
from harness.training.recording import Recording

EQUAL = "equal"


def differences(a: Recording, b: Recording, pairs: Sequence[tuple[Step, Step]]) -> dict[str, str]:
    """Return, for each pair of steps, "equal" or what differs first in it, in the order in which a step happens.

    The comparison is bitwise. A random state that differs is named as a cause only: one that nothing draws from is
    no difference.
    """
    return {f"step {one.number}": _first_difference(a, b, one, other) for one, other in pairs}


def first_cause(found: Mapping[str, str]) -> str:
    """Return a sentence about the first difference, or an empty string if there is none."""
    place = next((place for place, what in found.items() if what != EQUAL), None)
    return f"{place}: {found[place]}, and what follows from it" if place else ""


def _first_difference(a: Recording, b: Recording, one: Step, other: Step) -> str:
    passes, others = a.forwards_of(one.number), b.forwards_of(other.number)
    for what, equal in (
        ("the weights before it differ", same_part(one, other, "before")),
        ("the batch differs", same_batches(passes, others)),
        ("the loss differs", [p.loss for p in passes] == [p.loss for p in others]),
        ("the gradient differs", same_part(one, other, "gradient")),
        ("the learning rate differs", [g.lr for g in one.groups] == [g.lr for g in other.groups]),
        ("the optimizer's settings differ", one.groups == other.groups),
        ("the optimizer's moments differ", same_part(one, other, "state_after")),
        ("the weights after it differ", same_part(one, other, "after")),
    ):
        if not equal:
            if what == "the batch differs" and _under_other_ids(passes, others):
                return f"{what}: it has the same text under other ids, as in another order of the vocabulary"
            drawn = what in ("the batch differs", "the loss differs") and not same_random_state(passes, others)
            return f"{what}, and so does the random state" if drawn else what
    return EQUAL


def _under_other_ids(passes: list[Forward], others: list[Forward]) -> bool:
    """Return True if one batch is the other one with each token replaced by another, always the same."""
    if [each.ids.shape for each in passes] != [each.ids.shape for each in others]:
        return False
    pairs = {pair for p, o in zip(passes, others, strict=True) for pair in zip(*map(_flat, (p, o)), strict=True)}
    return len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) > 1


def _flat(forward: Forward) -> list[int]:
    return forward.ids.flatten().tolist()


def same_part(one: Step, other: Step, part: str) -> bool:
    """Return True if a part of two steps is bitwise equal, by the hashes where both have them."""
    if part in one.hashes and part in other.hashes:
        return dict(one.hashes[part]) == dict(other.hashes[part])
    return _equal(getattr(one, part), getattr(other, part))


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return set(one) == set(other) and all(_equal(one[name], other[name]) for name in one)


def same_random_state(passes: list[Forward], others: list[Forward]) -> bool:
    """Return True if torch's global generator had the same state before each pass."""
    return [each.rng for each in passes] == [each.rng for each in others]


def same_batches(passes: list[Forward], others: list[Forward]) -> bool:
    """Return True if the ids and the targets of the passes are equal."""
    return len(passes) == len(others) and all(
        torch.equal(p.ids, o.ids) and torch.equal(p.targets, o.targets) for p, o in zip(passes, others, strict=True)
    )
