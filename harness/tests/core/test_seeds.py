"""Seeds of torch's random numbers."""

import torch

from harness.core.seeds import seed_torch


def test_a_seed_gives_the_numbers_that_torch_gives_for_it():
    torch.manual_seed(7)
    expected = torch.rand(3)
    seed_torch(7)
    assert torch.equal(torch.rand(3), expected)
