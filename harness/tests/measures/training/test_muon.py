"""Muon's step: right in each convention, and told from an update that is not made orthogonal."""

import dataclasses

import pytest
import torch

from harness.measures.training.steps.muon import COEFFICIENTS, ROUNDING, MuonUpdate, _cause, _least_error, newton_schulz
from harness.training.optimizer_steps import Group

BETA = 0.95
FLOAT32 = torch.finfo(torch.float32).eps


def update(change, *, kind="mean", shape=(96, 32), **options):
    """Return an update whose `change` is a function of gradient, momentum before, and momentum after."""
    generator = torch.Generator().manual_seed(0)
    gradient, before = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    before = 0.3 * before
    after = BETA * before + (gradient if kind == "sum" else (1 - BETA) * gradient)
    group = Group(lr=0.02, betas=None, eps=None, weight_decay=0.0, names=("w",), options={"momentum": BETA} | options)
    after = after.float().double()  # as a program stores it
    return MuonUpdate("w", group, gradient, before, after, change(gradient, before, after), FLOAT32)


def in_bfloat16(matrix):
    return newton_schulz(matrix.bfloat16()).double()


def mean_ahead(gradient, before, after):
    return torch.lerp(gradient, after, BETA)


def polar_express(matrix):
    """Another iteration: exact singular values of 1."""
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize("shape", [(96, 32), (32, 96), (32, 32)])
@pytest.mark.parametrize(
    ("change", "options"),
    [
        (lambda *a: in_bfloat16(mean_ahead(*a)), {}),
        (lambda *a: 0.2 * 96**0.5 * in_bfloat16(mean_ahead(*a)), {"nesterov": True}),
        (lambda g, b, a: in_bfloat16(a), {"nesterov": False}),
        (lambda g, b, a: in_bfloat16(g + BETA * a), {"kind": "sum"}),
        (lambda *a: newton_schulz(mean_ahead(*a)).float().double(), {}),
        (lambda *a: polar_express(mean_ahead(*a)), {}),
    ],
    ids=["nesterov", "another length", "plain", "a sum", "in float32", "another iteration"],
)
def test_right_updates_are_right_in_each_convention(change, options, shape):
    assert _least_error(update(change, shape=shape, **options)) <= 1.05 < ROUNDING


@pytest.mark.parametrize(
    ("change", "options", "cause"),
    [
        (mean_ahead, {}, "it is not made orthogonal"),
        (lambda *a: newton_schulz(mean_ahead(*a), iterations=1), {}, "it is one iteration of five"),
        (lambda *a: torch.sign(mean_ahead(*a)), {}, "it is the sign of each entry"),
        (lambda g, b, a: in_bfloat16(g), {}, "the update is that of the gradient, without momentum"),
        (lambda g, b, a: in_bfloat16(a), {"nesterov": True}, "that of the momentum, without Nesterov's step"),
        (lambda g, b, a: in_bfloat16(b), {}, "that of the momentum before this step"),
        (lambda g, b, a: in_bfloat16(g - b), {}, "the update is not the momentum made orthogonal"),
        (lambda *a: -in_bfloat16(mean_ahead(*a)), {}, "the update goes uphill, or is zero"),
        (lambda g, b, a: torch.zeros_like(g), {}, "the update goes uphill, or is zero"),
    ],
)
def test_a_wrong_update_is_named(change, options, cause):
    wrong = update(change, **options)
    assert not _least_error(wrong) <= 1.5 * ROUNDING
    assert cause in _cause(wrong, _least_error(wrong))


@pytest.mark.parametrize(
    "after",
    [lambda g, b: (1 - BETA) * g, lambda g, b: 0.9 * b + 0.1 * g, lambda g, b: b],
    ids=["forgotten", "of another factor", "never updated"],
)
def test_a_momentum_that_is_not_carried_on_is_wrong_though_the_update_is_made_of_it(after):
    made = update(mean_ahead)
    found = after(made.gradient, made.before).float().double()
    step = in_bfloat16(torch.lerp(made.gradient, found, BETA))
    wrong = MuonUpdate("w", made.group, made.gradient, made.before, found, step, FLOAT32)
    assert not _least_error(wrong) <= 1000 * ROUNDING
    assert "the momentum is not that" in _cause(wrong, _least_error(wrong))


@pytest.mark.parametrize("kind", ["mean", "sum"])
def test_a_factor_that_no_option_names_is_read_off_the_momentum(kind):
    made = update(lambda g, b, a: in_bfloat16(a), kind=kind)
    unnamed = dataclasses.replace(made, group=dataclasses.replace(made.group, options={}))
    assert unnamed.beta == pytest.approx(BETA, abs=1e-6)
    assert _least_error(unnamed) <= 1.05


def test_the_rule_is_that_of_torch():
    weight = torch.nn.Parameter(torch.randn(48, 16, generator=torch.Generator().manual_seed(1)))
    optimizer = torch.optim.Muon([weight], lr=0.02, weight_decay=0.0)
    assert tuple(optimizer.defaults["ns_coefficients"]) == COEFFICIENTS
    weight.grad = torch.randn(48, 16, generator=torch.Generator().manual_seed(2))
    before, gradient = weight.detach().double().clone(), weight.grad.double().clone()
    optimizer.step()
    after = optimizer.state[weight]["momentum_buffer"].double()
    group = Group(lr=0.02, betas=None, eps=None, weight_decay=0.0, names=("w",), options=dict(optimizer.defaults))
    change = (before - weight.detach().double()) / 0.02
    made = MuonUpdate("w", group, gradient, torch.zeros_like(before), after, change, FLOAT32)
    assert _least_error(made) <= 1.05 < ROUNDING
