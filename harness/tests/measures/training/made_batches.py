"""Recordings of batches by the places of their windows in a text: at random, or side by side in epochs."""

import torch

from harness.tests.measures.training.hand_made import T, passes, recording, stream, text

TOKENS = text()
SPLIT = 3600
RANDOM = torch.randint(SPLIT - T, (400, 4), generator=torch.Generator().manual_seed(1)).tolist()


def batches(starts=RANDOM, *, tokens=TOKENS, validation=(), streams=None, settings=None, change=lambda *both: both):
    """Return a recording of training on windows that start there, and of one validation."""
    training = passes(tokens, starts, change=change)
    tested = passes(tokens, validation, phase="eval", first=len(starts) + 1, step=0)
    return recording([*(streams or [stream(tokens)]), *training, *tested], settings=settings or {})


def in_order(*, length=T, stride=T, epochs=2, shuffled=True, stop=SPLIT, rows=4):
    """Return the starts of windows side by side, in a new order each epoch, as batches."""
    starts = []
    for epoch in range(epochs):
        own = torch.arange(0, stop - 1, stride)
        order = torch.randperm(len(own), generator=torch.Generator().manual_seed(epoch * shuffled))
        starts += own[order].tolist() if shuffled else own.tolist()
    return [starts[i : i + rows] for i in range(0, len(starts), rows)]


def cut(starts, stop=SPLIT):
    """Return a `change` for windows that end with the training part: the targets beyond it are ignored."""
    todo = iter(start for batch in starts for start in batch)

    def change(ids, targets):
        for row in range(len(ids)):
            left = stop - 1 - next(todo)
            targets[row, max(left, 0) :] = -100
        return ids, targets

    return change


def epoch(**fields):
    starts = in_order(**fields)
    return batches(starts, change=cut(starts), validation=[list(range(SPLIT, 3900, T))])
