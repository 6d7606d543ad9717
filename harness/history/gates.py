"""Gates: limits on how much an arm may have grown between two runs, as `--fail-if slower:5%` sets them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from harness.bench.statistics import holm
from harness.history.change_estimates import probability_at_factor
from harness.history.compare_runs import ALPHA, Change

# The field of an arm's row that a gate limits. Times are None: they have noise, and a test of their own.
FIELDS: dict[str, str | None] = {"slower": None, "memory": "peak_memory_bytes", "error": "error"}


@dataclass(frozen=True)
class Gate:
    """A quantity that may grow by at most a factor: `slower:5%`, `memory:1.1x`, `error:2x`."""

    quantity: str
    factor: float

    @classmethod
    def parse(cls, text: str) -> Gate:
        """Return the gate that `text` describes on the command line. Raises ValueError if it describes none."""
        quantity, _, amount = text.partition(":")
        if quantity not in FIELDS or amount[-1:] not in ("%", "x"):
            raise ValueError(f"'{text}': expected slower:5%, memory:5% or error:2x")
        try:
            number = float(amount[:-1])
        except ValueError:
            raise ValueError(f"'{text}': {amount[:-1]!r} is no number; expected slower:5%, for example") from None
        factor = 1 + number / 100 if amount.endswith("%") else number
        if not 1 <= factor < math.inf:
            raise ValueError(f"'{text}': expected a limit of at least 0% or 1x, at which nothing may grow")
        return cls(quantity, factor)

    def __str__(self) -> str:
        return f"{self.quantity}:{100 * (self.factor - 1):.4g}%"

    def applicable(self, changes: Iterable[Change]) -> list[Change]:
        """Return the changes of arms that have this quantity in both runs."""
        field = FIELDS[self.quantity]
        return [change for change in changes if field is None or field in change.exact]

    def exceeded(self, changes: Iterable[Change]) -> list[Change]:
        """Return the changes beyond the limit.

        Times are tested one-sided and together, adjusted by Holm's method at 5%. Memory and errors have no noise and
        are compared as they are.
        """
        applicable = self.applicable(changes)
        if (field := FIELDS[self.quantity]) is not None:
            return [change for change in applicable if change.exact[field][1] > self.factor * change.exact[field][0]]
        adjusted = holm([probability_at_factor(change.estimate, self.factor) for change in applicable])
        return [change for change, p in zip(applicable, adjusted, strict=True) if p <= ALPHA]
