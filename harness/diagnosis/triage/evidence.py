"""One line of evidence: what was measured, its spread, the threshold, and what it says about one cause."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torch import Tensor

# "possible" is a cause only if nothing else is wrong: it depends on a program that the triage does not see.
Verdict = Literal["right", "wrong", "possible", "follows", "undecided"]

# A mean counts as different from zero beyond so many standard errors: by chance 6 times in 100,000 (normal, two-sided).
STANDARD_ERRORS = 4.0
# Nats per token. A smaller difference of loss is 10% of perplexity, which no reader of a sample notices.
MATTERS = 0.1


@dataclass(frozen=True)
class Evidence:
    """What one measurement says about one cause.

    `spread` is the standard error of `value`, in its unit; None where the value is exact. `says` is one sentence: the
    cause if it is wrong, what was found if it is right, and what is missing if it is undecided.
    """

    cause: str
    verdict: Verdict
    says: str
    measured: str = ""
    value: float | None = None
    spread: float | None = None
    unit: str = ""
    threshold: str = ""
    source: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the fields, JSON-ready: a value that is not finite is text."""
        row = asdict(self)
        for name in ("value", "spread"):
            if row[name] is not None and not math.isfinite(row[name]):
                row[name] = str(row[name])
        return row


def undecided(cause: str, why: str) -> Evidence:
    """Return the evidence line of a cause that could not be decided, with the reason."""
    return Evidence(cause, "undecided", why)


@dataclass(frozen=True)
class Mean:
    """A mean over windows of text, which are taken to be independent, with its standard error; in nats per token."""

    value: float
    error: float

    @property
    def z(self) -> float:
        """The mean in standard errors; 0 if both are 0."""
        if self.error == 0.0:
            return 0.0 if self.value == 0.0 else math.copysign(math.inf, self.value)
        return self.value / self.error

    @property
    def is_above(self) -> bool:
        """True if the mean is above 0 by more than chance, and by enough to matter."""
        return self.value > MATTERS and self.z > STANDARD_ERRORS


def mean_over_windows(values: Tensor) -> Mean:
    """Return the mean of `values` (N, T) and its standard error from the N window means."""
    means = values.double().mean(dim=1)  # (N, T) -> (N)
    return Mean(float(means.mean()), float(means.std()) / math.sqrt(len(means)))
