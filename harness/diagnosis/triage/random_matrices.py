"""Which matrices are indistinguishable from independent random numbers, as a matrix is before any training."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.diagnosis.triage.evidence import Evidence, undecided
from harness.subjects.weight_map import some

CAUSE, NOT_FINITE = "weights at initialisation", "weights not finite"
# Smaller matrices have too few singular values for the limit below.
SMALLEST = 16
# The largest of the singular values of random numbers is above this, in the units of `largest_singular_value`, once in
# 1,000 matrices: a quantile of the Tracy-Widom distribution (Johnstone 2001, The Annals of Statistics 29, Table 1 and
# its extensions). An update of training is of low rank, and takes it to tens and hundreds.
RANDOM_BELOW = 3.27
# And below this less than once: a matrix with equal singular values, such as an identity, is not random either.
RANDOM_ABOVE = -5.0
SOURCE = "Tracy-Widom law of random matrices, standardised: 99.9% of them are below (Johnstone 2001)"


def largest_singular_value(matrix: Tensor) -> float:
    """Return how far the squared largest singular value is above that of independent random numbers, standardised.

    Centre and scale are Johnstone's (2001), for the mean square of the entries. NaN for a matrix of zeros or with a
    value that is not finite.
    """
    wide = matrix.double() if matrix.shape[0] <= matrix.shape[1] else matrix.double().T
    p, n = wide.shape
    variance = float(wide.square().mean())
    if not math.isfinite(variance) or variance == 0.0:
        return math.nan
    largest = float(torch.linalg.eigvalsh(wide @ wide.T)[-1]) / variance
    edges = math.sqrt(n - 1) + math.sqrt(p)
    scale = edges * (1 / math.sqrt(n - 1) + 1 / math.sqrt(p)) ** (1 / 3)
    return float((largest - edges**2) / scale)


def finite(tensors: Mapping[str, Tensor]) -> Evidence:
    """Return the evidence on NaN and infinite weights, as a training that diverged leaves them."""
    broken = [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]
    return Evidence(
        NOT_FINITE,
        "wrong" if broken else "right",
        f"{len(broken)} tensors have NaN or infinite values: {some(broken)}" if broken else "all values are finite",
        "tensors with NaN or infinity",
        float(len(broken)),
        None,
        f"of {len(tensors)}",
        "0",
        "names, shapes and values",
    )


def random_matrices(tensors: Mapping[str, Tensor], size: Size) -> Evidence:
    """Return the evidence on matrices of a checkpoint that still have the values of an initialisation.

    An embedding alone proves nothing: what was learned of symbols without any likeness are rows without any, too.
    """
    matrices = {
        name: tensor
        for name, tensor in tensors.items()
        if tensor.ndim == 2 and min(tensor.shape) >= SMALLEST and tensor.is_floating_point()
    }
    found = {name: largest_singular_value(matrix) for name, matrix in matrices.items()}
    values = {name: value for name, value in found.items() if not math.isnan(value)}
    if not values:
        return undecided(CAUSE, f"no matrix is at least {SMALLEST} by {SMALLEST} and has finite values other than zero")
    random = [name for name, value in values.items() if RANDOM_ABOVE < value < RANDOM_BELOW]
    inner = [name for name in values if tensors[name].shape[0] not in (size.vocab_size, size.context)]
    vectors = [name for name, tensor in tensors.items() if tensor.ndim == 1 and _is_constant(tensor)]
    constant = f"; {len(vectors)} vectors are all zeros or all ones" if vectors else ""
    if len(random) == len(values):
        says = f"all {len(values)} matrices are random numbers{constant}: nothing of a training is in this file"
    elif found_inside := [name for name in random if name in inner]:
        random = found_inside
        says = f"{len(random)} of {len(inner)} matrices in the blocks are random numbers, as before any training"
        says = f"{says}{constant}: {some(random)}"
    elif random:
        return undecided(CAUSE, f"{some(random)} is like random numbers; of an embedding alone that proves nothing")
    else:
        says = f"none of {len(values)} matrices is random"
    least = min(values, key=lambda name: (name not in random, abs(values[name])))
    return Evidence(
        CAUSE,
        "wrong" if random else "right",
        says,
        f"largest singular value, the least: {'.'.join(least.split('.')[-3:])}",
        values[least],
        1.27,  # the standard deviation of the Tracy-Widom distribution
        "",
        f"above {RANDOM_BELOW}, or below {RANDOM_ABOVE:g}",
        SOURCE,
    )


def _is_constant(vector: Tensor) -> bool:
    return bool((vector == 0).all()) or bool((vector == 1).all())
