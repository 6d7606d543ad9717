"""The spike guard: it compares each gradient norm with those of the steps before."""

import math
from collections import deque
from statistics import median
from typing import Any

WINDOW = 50
"""The steps whose median is the usual norm."""
ENOUGH = 10
"""The fewest norms that have a usable median: the first steps of a run are all unusual."""


class SpikeGuard:
    """The gradient norms of the last steps. A norm of more than `factor` times their median is a spike.

    The median ignores single spikes, so that one spike does not hide the next. A factor of 0 finds none.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.norms: deque[float] = deque(maxlen=WINDOW)

    def usual(self) -> float | None:
        """Return the median norm of the last steps, None if there are too few of them."""
        return median(self.norms) if len(self.norms) >= ENOUGH else None

    def check(self, norm: float) -> str | None:
        """Return a sentence if `norm` is a spike, else None; either way remember the norm, if it is finite."""
        usual = self.usual()
        if math.isfinite(norm):
            self.norms.append(norm)
        if usual is None or not 0 < self.factor * usual < norm:
            return None
        return f"the gradient norm {norm:.4g} is {norm / usual:.1f} times the median of the last steps, {usual:.4g}"

    def state_dict(self) -> dict[str, Any]:
        """Return the norms, for a checkpoint."""
        return {"norms": list(self.norms)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue with the norms of a checkpoint."""
        self.norms = deque(state["norms"], maxlen=WINDOW)
