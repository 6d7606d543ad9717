"""Every comparison that `benchmarks/*.toml` declares: one test an arm and point; arms are measured together."""

from __future__ import annotations

from collections.abc import Callable


def test_comparison(
    compare: Callable[[str, int | None, str], None], comparison: str, point: int | None, arm: str
) -> None:
    """The arm's time, if its answer was right."""
    compare(comparison, point, arm)
