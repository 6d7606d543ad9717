"""The comparisons of `benchmarks/*.toml`: one test for each arm and point; the arms are measured together."""

from __future__ import annotations

from collections.abc import Callable


def test_comparison(
    compare: Callable[[str, int | None, str], None], comparison: str, point: int | None, arm: str
) -> None:
    """Report the arm's time if its answer passed verification."""
    compare(comparison, point, arm)
