"""The seed of a run: with another one, the harness draws other weights, tokens and random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

APART = 1_000_003  # further than any two seeds of one run
_of_run = 0


def seeded(own: int) -> int:
    """Return the seed to draw with: `own` in an ordinary run, and another one for each other seed of the run."""
    return own + APART * _of_run


@contextlib.contextmanager
def seed_of_run(seed: int) -> Iterator[None]:
    """Draw with another seed inside the block. What was computed with the last seed must not be in a cache any more."""
    global _of_run
    before, _of_run = _of_run, seed
    try:
        yield
    finally:
        _of_run = before
