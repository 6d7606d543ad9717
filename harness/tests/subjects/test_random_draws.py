"""Dropouts of every kind are followed from the random numbers to the value that they drop from."""

import math

import numpy
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from harness.subjects.random_draws import RandomDraws

RATE = 0.2
DROPOUTS = {
    "F.dropout": lambda x: F.dropout(x, RATE),
    "in place": lambda x: F.dropout(x.clone(), RATE, inplace=True),
    "nn.Dropout": lambda x: nn.Dropout(RATE)(x),
    "native_dropout": lambda x: torch.native_dropout(x, RATE, True)[0],
    "rand": lambda x: x * (torch.rand(x.shape) >= RATE) / (1 - RATE),
    "rand_like": lambda x: x * ((torch.rand_like(x) > RATE).float() / (1 - RATE)),
    "bernoulli": lambda x: x * torch.bernoulli(torch.full_like(x, 1 - RATE)) / (1 - RATE),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(1 - RATE).div_(1 - RATE),
    "floor": lambda x: x * (1 - RATE + torch.rand(x.shape)).floor_() / (1 - RATE),
    "masked_fill": lambda x: x.masked_fill(torch.rand(x.shape) < RATE, 0) / (1 - RATE),
    "a generator of its own": lambda x: (
        x * (torch.rand(x.shape, generator=torch.Generator().manual_seed(3)) > RATE) / (1 - RATE)
    ),
    "flash attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=RATE, is_causal=True),
    "flattened heads": lambda x: F.dropout(x.flatten(0, 1), RATE).view(x.shape),
    "channels": lambda x: F.dropout2d(x, RATE),
}


def followed(dropout, x):
    """Return what a dropout gives after a seed, and its draws and drops."""
    draws = RandomDraws()
    with torch.random.fork_rng(), draws.following():
        torch.manual_seed(2)
        found = dropout(x)
        found.sum()
    return found, draws


@pytest.fixture
def x():
    return torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_a_dropout_is_one_drop_with_its_factor(dropout, x):
    _, draws = followed(dropout, x)
    (drop,) = draws.drops
    kept, factor, fill = drop.multiple()
    assert (len(draws.draws), drop.used, fill) == (1, True, 0.0)
    assert factor == pytest.approx(1 / (1 - RATE))
    assert 0 < kept.double().mean() < 1


@pytest.mark.parametrize("dropout", DROPOUTS.values(), ids=DROPOUTS)
def test_after_one_seed_float32_drops_what_float64_drops(dropout, x):
    narrow, wide = followed(dropout, x.float())[0], followed(dropout, x)[0]
    torch.testing.assert_close(narrow, wide.float(), rtol=1e-4, atol=1e-4)


def test_dropped_scores_are_minus_infinity(x):
    _, draws = followed(lambda x: x.masked_fill(torch.rand(x.shape) < RATE, -math.inf), x)
    assert draws.drops[0].multiple()[1:] == (1.0, -math.inf)


def test_a_result_that_nothing_reads_is_not_used(x):
    draws = RandomDraws()
    with draws.following():
        F.dropout(x, RATE)
        x.sum()
    assert [drop.used for drop in draws.drops] == [False]


def test_a_mask_that_an_earlier_pass_drew_is_followed(x):
    mask = []

    def cached(value):
        mask.append(F.dropout(torch.ones_like(value), RATE)) if not mask else None
        return value * mask[0]

    draws = RandomDraws()
    for value in (x, 2 * x):
        with draws.following():
            cached(value)
    assert len(draws.draws) == 1
    assert len(draws.drops) == 2


def test_the_line_of_the_user_is_named(x):
    _, draws = followed(DROPOUTS["F.dropout"], x)
    assert "F.dropout(x, RATE)" in draws.draws[0].line.text
    assert str(draws.draws[0]).startswith("bernoulli_ (2, 3, 6, 6) at ")


def test_numbers_that_torch_does_not_draw_are_not_followed(x):
    _, draws = followed(lambda x: x * torch.from_numpy(numpy.random.default_rng(0).random(x.shape) > RATE), x)
    assert (draws.draws, draws.drops) == ([], [])


def test_noise_that_drops_nothing_has_no_value_that_it_drops_from(x):
    _, draws = followed(lambda x: x + 0.1 * torch.randn_like(x), x)
    assert [drop.before for drop in draws.drops] == [None]


SAMPLERS = {
    "a number of each row by a random one": lambda p: torch.rand(2, 1) * p.cumsum(-1)[:, -1:],
    "a race": lambda p: p[:1].masked_fill(p[:1] < p[:1].max(), 0.0) / torch.empty_like(p[:1]).exponential_(),
}


@pytest.mark.parametrize("sampler", SAMPLERS.values(), ids=SAMPLERS)
def test_a_sampler_drops_nothing(sampler):
    """A single number has always a factor, and the smaller of two was taken for a fill."""
    _, draws = followed(sampler, torch.rand(2, 9, dtype=torch.float64))
    assert [drop.before for drop in draws.drops] == [None]
