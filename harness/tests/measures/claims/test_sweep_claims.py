"""Claims about scaling are judged by the newest sweep, and the known entropy by its fit."""

import pytest

from harness.core.resources import Resources
from harness.judging.run_check import run
from harness.subjects.adapters import adapt
from harness.tests.measures.claims.sample_runs import save
from harness.tests.report.sweeps.sample_sweep import fits


@pytest.fixture
def judge(shipped, tmp_path, monkeypatch):
    """Return a function that judges a check by the records in the test's folder."""
    monkeypatch.setattr(Resources, "current", Resources(records=str(tmp_path / "records")))
    subject = adapt("gpt:GPT", own=False)
    return lambda name: run(shipped[name], subject)


def with_sweep(tmp_path, change=lambda row: row):
    save(tmp_path, "sweep", [*map(change, fits("text")), *map(change, fits())], subject="gpt.train")


def changed(approach, **values):
    """Return a change of the fits of one approach."""
    return lambda row: {**row, "values": {**row["values"], **values}} if row["approach"] == approach else row


@pytest.mark.parametrize("name", ["optimal-sizes", "loss-exponent", "doubling-compute-here"])
def test_without_a_sweep_a_claim_is_skipped_by_the_command_that_makes_one(judge, name):
    record = judge(f"claims::{name}")
    assert (record.verdict, record.message) == ("skip", "`gpt-harness sweep` has not run")


@pytest.mark.parametrize(
    ("name", "change", "finding"),
    [
        ("optimal-sizes", lambda row: row, "holds"),
        ("optimal-sizes", changed("iso-flop", size_exponent=[0.38, 0.36, 0.40]), "does not hold"),
        ("loss-exponent", lambda row: row, "does not hold"),
        ("loss-exponent", changed("iso-flop", loss_exponent=[0.049, 0.04, 0.06]), "holds"),
        ("doubling-compute-here", lambda row: row, "does not hold"),
        ("doubling-compute-here", changed("iso-flop", loss_exponent=[0.0499, 0.04, 0.06]), "holds"),
    ],
)
def test_a_claim_is_judged_by_the_fit(judge, tmp_path, name, change, finding):
    with_sweep(tmp_path, change)
    record = judge(f"claims::{name}")
    assert (record.verdict, record.value) == ("pass", finding)
    reading = record.details["readings"][0]
    assert reading["details"]["spread"]["over"] == "12 runs, 95%"


def test_a_minimum_beyond_the_sizes_decides_nothing(judge, tmp_path):
    with_sweep(tmp_path, lambda row: {**row, "not_bracketed": [1e10]})
    record = judge("claims::optimal-sizes")
    assert record.verdict == "skip"
    assert "that at 1e+10 FLOPs is beyond the sizes that were run" in record.message


def test_a_sweep_without_an_interval_or_without_the_source_decides_nothing(judge, tmp_path):
    with_sweep(tmp_path, changed("iso-flop", size_exponent=[0.46, float("nan"), float("nan")]))
    assert "too few for one" in judge("claims::optimal-sizes").message
    save(tmp_path, "sweep", fits(), subject="gpt.train")
    assert "the newest sweep has fits of markov" in judge("claims::loss-exponent").message


def test_the_known_entropy_is_found_or_is_not(judge, tmp_path):
    with_sweep(tmp_path)
    assert judge("scaling::entropy-is-found").verdict == "pass"
    with_sweep(tmp_path, changed("parametric", E=[3.75, 3.72, 3.78]))
    record = judge("scaling::entropy-is-found")
    assert record.verdict == "fail"
    assert record.details["hint"] == "E = 3.7500 [3.7200, 3.7800] nats, known 3.8614"
