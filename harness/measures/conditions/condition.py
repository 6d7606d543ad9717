"""A condition under which a GPT is called, as data, and the tables of conditions of the sweep."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Value = str | int


@dataclass(frozen=True)
class Condition:
    """One row of a sweep: how a model is called, and what happened before.

    Attributes:
        rows: The rows of the batch.
        length: The tokens of a row.
        mode: "eval", or "train" with every dropout off.
        gradients: "recorded", "no_grad" or "inference_mode".
        call: "logits", or "targets" for a call with targets, whose loss is judged as well.
        ids: "int64", "int32", "non-contiguous", or "expanded" for rows that share one row's memory.
        after: What was done with the model before the call: a key of `sweep.EVENTS`.
        heads: The heads of each layer, and `layers` their number.
    """

    rows: int = 2
    length: int = 24
    mode: str = "eval"
    gradients: str = "no_grad"
    call: str = "logits"
    ids: str = "int64"
    after: str = "another call"
    heads: int = 4
    layers: int = 3

    def __str__(self) -> str:
        """Return it in words, with what is not the plain condition: `9 rows of 17 tokens, train, inference_mode`."""
        plain = Condition()
        words = [f"{_counted(self.rows, 'row')} of {_counted(self.length, 'token')}"]
        words += [self.mode] if self.mode != plain.mode else []
        words += [SAID[self.gradients]] if self.gradients != plain.gradients else []
        words += ["with targets"] if self.call != plain.call else []
        words += [f"{self.ids} ids"] if self.ids != plain.ids else []
        words += [f"after {self.after}"] if self.after != plain.after else []
        if (self.heads, self.layers) != (plain.heads, plain.layers):
            words.append(f"{_counted(self.heads, 'head')}, {_counted(self.layers, 'layer')}")
        return ", ".join(words)

    @property
    def may_be_refused(self) -> bool:
        """True if a GPT may answer with an error: nobody promises ids of another kind, or targets in inference mode.

        A loss that differentiates in its forward pass cannot do so in inference mode.
        """
        return self.ids != "int64" or (self.gradients == "inference_mode" and self.call == "targets")


def _counted(number: int, unit: str) -> str:
    return f"{number} {unit}" if number == 1 else f"{number} {unit}s"


SAID = {"recorded": "gradients recorded", "no_grad": "no_grad", "inference_mode": "inference_mode"}

# Lengths: 1, 2, primes, the whole context, and the edges of tiles, which are powers of two, less and more by one.
FACTORS: Mapping[str, Sequence[Value]] = {
    "length": (1, 2, 3, 5, 7, 11, 13, 15, 16, 17, 19, 23, 29, 30, 31, 32),
    "rows": (1, 2, 3, 5, 9, 17, 64),
    "mode": ("eval", "train"),
    "gradients": ("recorded", "no_grad", "inference_mode"),
    "call": ("logits", "targets"),
    "ids": ("int64", "int32", "non-contiguous", "expanded"),
    "after": ("another call", "an error (ids too long)", "a backward pass", "an optimizer step", "generation"),
}
TIMES = 2  # each length comes so many times
TRIED = 30  # random rows from which the greedy search chooses
LONG = (1, 33, 63, 64, 65, 100, 127, 128, 129, 191, 255, 256, 257, 383, 511, 512, 513, 518, 519)
# (heads, layers): GPT-2's own numbers, and some beside them. What is wrong from 13 layers on cannot be taken for what
# is wrong from 16 heads on: no limit of one number divides the shapes as a limit of the other does. Many layers have
# few heads, because 48 layers of 16 heads take seconds to build where each head is a module.
SHAPES = ((1, 1), (12, 3), (16, 1), (25, 1), (20, 13), (2, 24), (2, 48))


def short_conditions(seed: int, *, context: int) -> list[Condition]:
    """Return the rows of the sweep at the debug size: every pair of values of two factors, as far as they go.

    Lengths and rows have too many pairs: each length comes twice, with other rows. The order is random, because
    a cache that is kept from call to call shows only after another shape.
    """
    dice = random.Random(seed)
    lengths = [length for length in FACTORS["length"] if int(length) <= context] * TIMES
    dice.shuffle(lengths)
    covered: set[Any] = set()
    found = []
    for length in lengths:
        tried = [_random_row(dice, length) for _ in range(TRIED)]
        best = max(tried, key=lambda row: len(_pairs(row) - covered))
        covered |= _pairs(best)
        found.append(Condition(**best))
    # The first call is in inference mode: what it makes and a model keeps is of no use to training.
    plain = Condition(length=min(24, context))
    return [replace(plain, gradients="inference_mode"), plain, Condition(1, 1), *found]


def long_conditions(seed: int, *, context: int) -> list[Condition]:
    """Return the rows of the sweep over long contexts: one or three rows, gradients recorded or not."""
    dice = random.Random(seed)
    rows = [
        Condition(
            rows=dice.choice((1, 2)) if length < 300 else 1,
            length=length,
            gradients=("no_grad", "recorded", "inference_mode")[number % 3],
            heads=4,
            layers=1,
        )
        for number, length in enumerate(LONG)
        if length <= context
    ]
    dice.shuffle(rows)
    return rows


def _random_row(dice: random.Random, length: Value) -> dict[str, Any]:
    return {"length": length, **{name: dice.choice(values) for name, values in FACTORS.items() if name != "length"}}


def _pairs(row: Mapping[str, Value]) -> set[Any]:
    return set(itertools.combinations(row.items(), 2))
