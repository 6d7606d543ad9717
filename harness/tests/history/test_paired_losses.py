"""Pairs of runs decide if a loss is worse by more than d: as often as they say, and no more often wrongly."""

from pathlib import Path

import numpy as np
import pytest

from harness.bench.statistics import wilson_interval
from harness.faults.training import specimens
from harness.history import paired_losses
from harness.history.paired_losses import decide, pair_of, plan, power
from harness.training.child_processes import ChildProcesses
from harness.training.program import TrainingProgram

SPECIMEN = Path(specimens.__file__).with_name("script.py")

WORSE, SCATTER, TRIALS = 0.01, 0.008, 4000


def share(kind, mean, pairs):
    """The share of experiments with normal differences that end in this verdict, with its 95% interval."""
    drawn = np.random.default_rng(0).normal(mean, SCATTER, (TRIALS, pairs))
    return wilson_interval(sum(decide(row.tolist(), WORSE).kind == kind for row in drawn), TRIALS)


@pytest.mark.parametrize("pairs", [8, 16])
def test_a_program_at_the_limit_is_called_either_once_in_twenty(pairs):
    for kind in ("not worse", "worse"):
        low, high = share(kind, WORSE, pairs)
        assert low <= 0.05 <= high


@pytest.mark.parametrize("pairs", [8, 12, 24])
def test_the_power_that_is_stated_is_the_share_of_equal_programs_that_are_called_not_worse(pairs):
    low, high = share("not worse", 0.0, pairs)
    assert low - 0.02 <= power(pairs, SCATTER, WORSE) <= high + 0.02


def test_the_fewest_pairs_with_the_power_are_planned_and_no_more_than_allowed():
    pilot = [0.0, 0.01, -0.01, 0.005, -0.005]
    found = plan(pilot, WORSE, 100)
    assert found.power >= paired_losses.POWER > power(found.pairs - 1, found.scatter, WORSE)
    capped = plan(pilot, WORSE, 9)
    assert (capped.pairs, capped.power) == (9, power(9, capped.scatter, WORSE))
    assert capped.power < paired_losses.POWER
    assert plan([0.0] * 5, WORSE, 100).pairs == paired_losses.FEWEST


def test_the_bound_on_the_scatter_of_a_pilot_is_above_it_four_times_in_five():
    drawn = np.random.default_rng(0).normal(0.0, SCATTER, (TRIALS, paired_losses.PILOT))
    above = (paired_losses.SCATTER_BOUND * drawn.std(axis=1, ddof=1) > SCATTER).sum()
    low, high = wilson_interval(int(above), TRIALS)
    assert low <= 0.8 <= high


def test_a_pair_has_one_seed_and_another_pair_another(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, beta in (("old", "0.95"), ("same", "0.95"), ("new", "0.5")):
        text = SPECIMEN.read_text(encoding="utf-8").replace("beta2 = 0.95", f"beta2 = {beta}")
        (tmp_path / f"{name}.py").write_text(text)
    old, same, new = programs = [
        TrainingProgram(f"{name}.py", processes=ChildProcesses()) for name in ("old", "same", "new")
    ]
    try:
        one, two = (pair_of([old, same], number, 5) for number in (0, 1))
        assert one[0] == one[1] != two[0] == two[1]
        hidden = pair_of([old, new], 2, 5)
        for program in programs:
            program.leave({"beta2"})
        left = pair_of([old, new], 3, 5)
    finally:
        for program in programs:
            program.close()
            program.processes.close()
    assert hidden[0] == hidden[1]
    assert left[0] != left[1]
