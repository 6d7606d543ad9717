"""The global batches on which ranks and one process are compared."""

from __future__ import annotations

from torch import Tensor

from harness.core.sizes import SIZES
from harness.oracle.tokens import batch

PLAIN, ACCUMULATED = "plain", "accumulated"
STEPS = {PLAIN: 1, ACCUMULATED: 2}
MICRO_BATCHES = 2
ROWS = 4  # of a micro-batch, on all ranks together
CLIP = 1.0  # far below the norm of the gradient with probe weights, so that every step clips
IGNORED = -100

GlobalBatch = list[tuple[Tensor, Tensor]]  # micro-batches, ids and targets (ROWS, T)


def global_batches(size: str, case: str) -> list[GlobalBatch]:
    """Return the batch of each step.

    plain: one micro-batch, and each row has as many targets. accumulated: two, and rows of different numbers of
    targets, so that a mean of means is not the mean: the last rank of the first micro-batch has a quarter of them. No
    two steps have the same number.
    """
    length = min(24, SIZES[size].context)
    return [
        [
            _micro_batch(size, length, 10 * step + number, case)
            for number in range(MICRO_BATCHES if case != PLAIN else 1)
        ]
        for step in range(STEPS[case])
    ]


def _micro_batch(size: str, length: int, seed: int, case: str) -> tuple[Tensor, Tensor]:
    ids, targets = batch(SIZES[size], "random", rows=ROWS, length=length, seed=100 + seed)
    if case == ACCUMULATED:
        targets = targets.clone()
        step, number = divmod(seed, 10)
        if number == 0:
            targets[ROWS // 2 :, length // 4 + 5 * step :] = IGNORED
        else:
            targets[:1, : length // 3] = IGNORED
    return ids, targets.contiguous()
