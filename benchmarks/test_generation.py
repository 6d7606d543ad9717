"""Cached against uncached generation over lengths: time, and the token positions that are really processed."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import arms
from benchmarks.truth import SameTokens, float32_bound
from benchmarks.workshop import Workshop
from harness.compare import AGAIN, Comparison, Work, with_twin
from harness.tokens import batch

PROMPT = 10  # the lessons count 100 new tokens from a prompt of 10
LENGTHS, FEWER = (10, 20, 50, 100), (8, 16)


@pytest.mark.compares(
    arms=("uncached", "cached"), axis="new tokens", points=LENGTHS, quick=FEWER, prompt=PROMPT, weight=2
)
def test_generate(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    """Greedy, so that both arms must give the same tokens."""
    prompt = batch(workshop.size, "random", rows=1, length=PROMPT)[0].to(workshop.device)

    def work(use_cache: bool, copy: int) -> Work:
        model = workshop.model(copy=copy)
        return arms.generation(workshop.subject, model, prompt, point, use_cache=use_cache)

    uncached = arms.uncached_positions(PROMPT, point)
    compare(
        Comparison(
            name="generation",
            title="Generation with a cache and without",
            metric="generate",
            axis="new tokens",
            point=point,
            weigh=False,
            control="uncached",
            arms=with_twin(
                {"uncached": lambda copy: work(False, copy), "cached": lambda copy: work(True, copy)},
                of="uncached",
            ),
            verify=SameTokens(
                lambda ids: arms.forward(workshop.model(dtype="float64"), ids),
                control="uncached",
                bound=float32_bound(workshop.size),
                positions={
                    "uncached": uncached,
                    f"uncached{AGAIN}": uncached,
                    "cached": arms.cached_positions(PROMPT, point),
                },
            ),
        )
    )
