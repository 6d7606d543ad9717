"""The measure of claims about the key-value cache's work: positions that went through the model, counted."""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

from harness.bench.arms.workloads.generation import observe_calls
from harness.core.errors import MissingAbility
from harness.core.sizes import Size
from harness.oracle.tokens import batch
from harness.subjects.protocols import Generates
from harness.suites.measure_registry import Reading, measure

# Positions are counted, not timed, so the model is as small as a model can be; its context is that of GPT-2.
COUNTED = Size("one layer, 16 wide, context 1024", vocab_size=211, context=1024, layers=1, heads=2, width=16)
CURVE_POINTS = 40  # of the counts over new tokens that the record keeps


@measure
def positions_processed(subject: Generates, *, prompt_length: int, new_tokens: int) -> Reading:
    """Count the positions that go through the model for a greedy answer: without a cache, with one, and their ratio.

    Counted where tokens are embedded, on a real generation of one sequence by a model of size `COUNTED`. Raises
    MissingAbility if the subject generates in one way only, embeds its tokens by no nn.Embedding, or does not call the
    model for each token.
    """
    counts = {use: _counted(subject, prompt_length, new_tokens, use) for use in (False, True)}
    uncached, cached = counts[False][-1], counts[True][-1]
    return Reading(
        {"uncached": uncached, "cached": cached, "ratio": uncached / cached},
        "positions",
        {
            "size": COUNTED.name,
            "units": {"ratio": "times"},
            "curve": [[n + 1, counts[False][n], counts[True][n]] for n in _points(new_tokens)],
        },
    )


@functools.lru_cache(maxsize=8)
def _counted(subject: Generates, prompt_length: int, new_tokens: int, use_cache: bool) -> tuple[int, ...]:
    """Return the positions that were processed after each new token."""
    model = subject.build(COUNTED)
    prompt, _ = batch(COUNTED, "random", rows=1, length=prompt_length)
    processed: list[int] = []
    with observe_calls(model) as calls:

        def note(module: nn.Module, arguments: Any, output: Any) -> None:
            processed.append(calls.positions or 0)

        hook = model.module.register_forward_hook(note)
        try:
            subject.generate(model, prompt, new_tokens, temperature=0.0, use_cache=use_cache)
        finally:
            hook.remove()
    if calls.positions is None:
        raise MissingAbility(f"the positions of {subject.name} cannot be counted: it has no nn.Embedding of its tokens")
    if len(processed) < new_tokens:
        raise MissingAbility(
            f"the positions of {subject.name} cannot be counted: its generation of {new_tokens} tokens calls the model "
            f"{len(processed)} times from outside"
        )
    # One call a token is the rule; where a subject makes more, the last ones are those of the answer.
    return (*processed[-new_tokens:-1], calls.positions)


def _points(new_tokens: int) -> list[int]:
    """Return numbers from 0 to new_tokens - 1 that are evenly spaced on a logarithmic axis, from 1."""
    return sorted({round(new_tokens ** (index / CURVE_POINTS)) - 1 for index in range(CURVE_POINTS + 1)})
