"""Random matrices are distinguished from trained ones by their largest singular value."""

import math

import pytest
import torch

from harness.diagnosis.triage.random_matrices import RANDOM_ABOVE, RANDOM_BELOW, largest_singular_value

FILLS = {
    "normal": lambda matrix, generator: matrix.normal_(0, 0.02, generator=generator),
    "uniform": lambda matrix, generator: matrix.uniform_(-0.1, 0.1, generator=generator),
}


@pytest.mark.parametrize("shape", [(48, 192), (192, 48), (16, 32), (64, 64)], ids=str)
@pytest.mark.parametrize("fill", FILLS.values(), ids=FILLS)
def test_of_200_random_matrices_at_most_2_are_taken_for_trained(fill, shape):
    generator = torch.Generator().manual_seed(0)
    values = [largest_singular_value(fill(torch.empty(shape), generator)) for _ in range(200)]
    assert sum(not RANDOM_ABOVE < value < RANDOM_BELOW for value in values) <= 2


def test_a_small_change_in_one_direction_is_seen():
    generator = torch.Generator().manual_seed(0)
    matrix = torch.empty(48, 192).normal_(0, 0.02, generator=generator)
    direction = torch.outer(torch.randn(48, generator=generator), torch.randn(192, generator=generator))
    changed = matrix + 0.01 * direction  # half as large as the numbers themselves
    assert largest_singular_value(changed) > 10


def test_an_identity_is_not_random_and_zeros_are_undecided():
    assert largest_singular_value(torch.eye(16, 32)) < RANDOM_ABOVE
    assert math.isnan(largest_singular_value(torch.zeros(16, 32)))
    assert math.isnan(largest_singular_value(torch.full((16, 32), math.nan)))
