"""The seed of a run: with another one, the harness draws other weights, tokens and random numbers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

APART = 1_000_003  # further than any two seeds of one run
_of_run = 0


def seeded(own: int) -> int:
    """Return the seed to draw with: `own` in an ordinary run, and another one for each other seed of the run."""
    return own + APART * _of_run


def seed_torch(seed: int) -> None:
    """Seed torch's random numbers on every device.

    Where there is only the CPU, its generator is seeded directly: `torch.manual_seed` would take 30 times as long,
    because it stores the call, with the text of the whole stack, for each kind of device.
    """
    if torch.accelerator.is_available():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@contextlib.contextmanager
def seed_of_run(seed: int) -> Iterator[None]:
    """Draw with another seed inside the block. What was computed with the last seed must not be in a cache any more."""
    global _of_run
    before, _of_run = _of_run, seed
    try:
        yield
    finally:
        _of_run = before
