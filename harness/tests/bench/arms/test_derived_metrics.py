"""Metrics derived from several figures: exponents, memory and ratios against expectations, utilisation, break-even."""

from pathlib import Path

import pytest

from harness.bench.arms import read_comparisons
from harness.bench.arms.derived_metrics import add_derived_metrics, check_expectations

ROOT = Path(__file__).parents[4]


def rows(exponent, *, closed=2.0, high=0.45):
    found = []
    for point in (128, 256, 512, 1024):
        arm = {
            "arm": "naive", "seconds": [1e-6 * point**2.0] * 6, "flops": point**2.0,
            "peak_memory_bytes": point**exponent, "ledgers": {"closed form": point**closed},
        }  # fmt: skip
        ratio = {"arm": "flash", "ratio": 0.4, "low": 0.3, "high": high}
        found.append({"point": point, "arms": [arm, {**arm, "arm": "flash"}], "ratios": [ratio]})
    return found


def test_an_exponent_is_compared_with_that_of_the_closed_form():
    declared = next(d for d in read_comparisons(ROOT / "benchmarks") if d.label == "attention forward")
    records = {row["what"]: row for row in check_expectations(declared, rows(2.0))}
    assert records["exponent of memory over tokens"]["verdict"] == "pass"
    assert records["exponent of memory over tokens"]["found"] == pytest.approx(2.0)
    assert records["exponent of time over tokens"]["verdict"] == "pass"
    records = {row["what"]: row for row in check_expectations(declared, rows(1.0))}
    assert records["exponent of memory over tokens"]["verdict"] == "fail"


def test_memory_and_ratios_are_compared_with_what_was_declared():
    declared = next(d for d in read_comparisons(ROOT / "benchmarks") if d.label == "attention forward")

    def records_of(rows):
        return {(row["arm"], row["what"].split()[0]): row for row in check_expectations(declared, rows)}

    right = records_of(rows(2.0))
    assert right["naive", "peak"]["verdict"] == "pass"
    assert right["flash", "time"]["verdict"] == "pass"
    assert records_of(rows(2.0, closed=2.01))["naive", "peak"]["verdict"] == "fail"
    assert records_of(rows(2.0, high=0.6))["flash", "time"]["verdict"] == "unresolved"


def test_utilisation_and_break_even_come_from_the_row():
    arm = {"median_seconds": 2.0, "computes": "float32"}
    row = {
        "control": "eager",
        "ceilings": [{"name": "gemm float32 c_fc", "computes": "float32", "rate": 100.0}],
        "arms": [
            {"arm": "eager", **arm, "extras": {"model_flops": 50.0}},
            {"arm": "compiled", **arm, "median_seconds": 1.5, "extras": {"first_call_seconds": 10.0}},
            {"arm": "slower", **arm, "median_seconds": 2.5, "extras": {"first_call_seconds": 10.0}},
        ],
    }
    add_derived_metrics(row)
    assert row["arms"][0]["extras"]["mfu"] == pytest.approx(0.25)
    assert row["arms"][1]["extras"]["break_even_calls"] == 20
    assert "break_even_calls" not in row["arms"][2]["extras"]
