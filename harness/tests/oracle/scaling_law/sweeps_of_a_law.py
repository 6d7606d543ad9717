"""Sweeps whose law is known, with noise of a known size."""

import torch

from harness.oracle.scaling_law.law import Law
from harness.oracle.scaling_law.parametric_fit import Points

LAW = Law(E=3.85, A=60.0, B=60.0, alpha=0.6, beta=0.45)
BUDGETS = (3e10, 1e11, 3e11)


def sweep(law=LAW, *, noise=0.0, seeds=2, seed=0, ratio=2.2):
    """Return C, N and L of five sizes at each budget."""
    cells = [(C, law.optimal_parameters(C) * ratio**k) for C in BUDGETS for k in range(-2, 3) for _ in range(seeds)]
    C, N = torch.tensor(cells, dtype=torch.float64).T
    generator = torch.Generator().manual_seed(seed)
    off = noise * torch.randn(len(N), generator=generator, dtype=torch.float64)
    return C, N, law.loss(N, C / (6 * N)) * off.exp()


def points(C, N, L):
    """Return the runs as logarithms."""
    return Points.of(N, C / (6 * N), L)
