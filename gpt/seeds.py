"""A seed, made into a generator of random numbers of its own."""

import operator

import torch

from gpt.errors import SeedError


def generator_of(seed: int | None, device: torch.device | str | None = None) -> torch.Generator | None:
    """Return a generator on `device` that `seed` fixes; None, for the global state, without a seed.

    Raises `SeedError` for a seed that is no whole number of 64 bits. A whole number of NumPy is one.
    """
    if seed is None:
        return None
    try:
        whole = operator.index(seed)
    except TypeError:
        whole = None
    if whole is None or isinstance(seed, (bool, torch.Tensor)):
        raise SeedError(f"seed={seed!r} is of type {type(seed).__name__}; expected a whole number, or None")
    if not -(2**63) <= whole < 2**64:
        raise SeedError(f"the seed has {whole.bit_length()} bits; expected a whole number of 64 bits")
    return torch.Generator(device or "cpu").manual_seed(whole)
