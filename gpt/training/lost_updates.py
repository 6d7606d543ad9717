"""Lost updates: weights that a step should move and that rounding leaves where they are."""

from collections.abc import Sequence

import torch
from torch import Tensor

SAMPLE = 65_536
"""The elements that are compared in each parameter, evenly spaced: all of a small one, 1 in 589 of GPT-2's embedding.

All of GPT-2 small would be a copy of 124 million weights at every step.
"""

_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class WeightSample:
    """The weights before a step, of those elements whose gradient is not 0.

    Take it after the gradient is complete, and before the optimizer's step.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._kept = [
            (parameter, _sampled(parameter).clone(), _sampled(parameter.grad) != 0)
            for parameter in parameters
            if parameter.grad is not None
        ]

    def lost_share(self) -> float:
        """Return the share of elements that are bitwise what they were, though their gradient was not 0."""
        counts = []  # of each parameter: the elements that should move, and those of them that did not
        for parameter, before, wanted in self._kept:
            same = _bits(_sampled(parameter)) == _bits(before)
            # Each sampled element stands for `stride` of its parameter.
            counts.append(_stride(parameter) * torch.stack([wanted.sum(), (same & wanted).sum()]))
        wanted_count, lost_count = torch.stack(counts).sum(dim=0).tolist()  # read at once: a GPU waits at each reading
        return float(lost_count / wanted_count) if wanted_count else 0.0


def _stride(tensor: Tensor) -> int:
    return -(-tensor.numel() // SAMPLE)


def _sampled(tensor: Tensor) -> Tensor:
    return tensor.detach().flatten()[:: _stride(tensor)]


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(_BITS[tensor.element_size()])
