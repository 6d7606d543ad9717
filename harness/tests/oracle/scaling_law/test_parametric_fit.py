"""The parametric fit finds laws that are known, and the minimum that another optimizer finds."""

import dataclasses

import pytest
import torch

from harness.oracle.scaling_law.law import BESIROGLU, HOFFMANN, Law
from harness.oracle.scaling_law.parametric_fit import DELTA, Centre, fit_law, fit_laws, objective, starts
from harness.tests.oracle.scaling_law.sweeps_of_a_law import LAW, points, sweep


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU, LAW, Law(0.5, 5.0, 3000.0, 0.15, 0.9)])
def test_a_law_is_recovered_from_losses_without_noise(law):
    found = fit_law(points(*sweep(law)))
    for name, value in dataclasses.asdict(law).items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-6)


@pytest.mark.parametrize("noise", [0.001, 0.01, 0.02])
def test_the_minimum_is_as_low_as_the_one_that_torch_s_l_bfgs_finds(noise):
    table = points(*sweep(noise=noise, seed=3))
    found = objective(table, fit_law(table))
    assert found <= _by_lbfgs(table) * (1 + 1e-6)
    assert found < objective(table, LAW)


def test_many_tables_at_once_have_the_fits_that_each_has_alone():
    tables = [points(*sweep(noise=0.01, seed=seed)) for seed in range(3)]
    together = dataclasses.replace(tables[0], log_loss=torch.stack([table.log_loss for table in tables]))
    for law, table in zip(fit_laws(together, near=LAW), tables, strict=True):
        assert objective(table, law) == pytest.approx(objective(table, fit_law(table)), rel=1e-6)


def _by_lbfgs(table):
    centre = Centre(table)
    lowest = float("inf")
    for start in starts(centre, table.log_loss)[::9]:
        theta = start.clone().requires_grad_()
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def closure(theta=theta, optimizer=optimizer):
            optimizer.zero_grad()
            residual = centre.residual(theta[None], table.log_loss[None])[0][0]
            value = torch.nn.functional.huber_loss(residual, torch.zeros_like(residual), delta=DELTA, reduction="sum")
            value.backward()
            return value.detach()

        optimizer.step(closure)
        lowest = min(lowest, float(closure()))
    return lowest
