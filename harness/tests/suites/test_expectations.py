"""Expectations: which values pass, which fail, and which never pass."""

import math

import pytest

from harness.suites.expectations import judge
from harness.suites.measure_registry import Reading

PASSES = [
    (3, {"equals": 3}),
    ("rejected", {"equals": "rejected"}),
    (0.5, {"at_most": 0.5}),
    (0.5, {"at_least": 0.5}),
    (0.5, {"between": [0.5, 1.0]}),
    (10.9, {"close_to": {"value": 10.978, "abs": 0.1}}),
    (99, {"close_to": {"value": 100, "rel": 0.01}}),
    ("equal", {"noise": "rounding"}),
    ("rounding", {"noise": "rounding"}),
    ({"a": 0.1, "b": 0.2}, {"at_most": 0.2}),
]
FAILS = [
    (3, {"equals": 4}),
    (True, {"equals": 1}),
    (1, {"equals": True}),
    (0.6, {"at_most": 0.5}),
    (0.4, {"at_least": 0.5}),
    (0.4, {"between": [0.5, 1.0]}),
    (11.1, {"close_to": {"value": 10.978, "abs": 0.1}}),
    ("rounding", {"noise": "equal"}),
    ("different", {"noise": "rounding"}),
    ("an unknown word", {"noise": "rounding"}),
    ({"a": 0.1, "b": 0.3}, {"at_most": 0.2}),
    ("0.1", {"at_most": 0.5}),
    (True, {"at_most": 5}),
]


@pytest.mark.parametrize(("value", "expected"), PASSES)
def test_an_expected_value_passes(value, expected):
    assert judge(Reading(value), expected).passed


@pytest.mark.parametrize(("value", "expected"), FAILS)
def test_an_unexpected_value_fails(value, expected):
    assert not judge(Reading(value), expected).passed


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, {"a": 0.0, "b": math.nan}])
@pytest.mark.parametrize(
    "expected",
    [{"equals": 0.0}, {"between": [-1, 1]}, {"close_to": {"value": 0, "abs": 1}}, {"noise": "rounding"}],
)
def test_nan_and_infinity_never_pass(value, expected):
    assert not judge(Reading(value), expected).passed


@pytest.mark.parametrize("expected", [{"at_most": 1e300}, {"at_least": -1e300}, {"near_predicted": {"abs": 1e300}}])
def test_nan_passes_not_even_a_very_wide_bound(expected):
    assert not judge(Reading({"a": math.nan}, details={"predicted": {"a": 0.0}}), expected).passed


@pytest.mark.parametrize("expected", [{"at_most": 1.0}, {"equals": True}, {"near_predicted": {"rel": 1.0}}])
def test_a_comparison_of_nothing_never_passes(expected):
    assert not judge(Reading({}), expected).passed


def test_each_place_is_compared_with_its_own_prediction():
    reading = Reading({"block 0": 0.80, "block 1": 0.95}, details={"predicted": {"block 0": 0.80, "block 1": 0.84}})
    assert judge(reading, {"near_predicted": {"rel": 0.05}}).where == ["block 1"]
    assert judge(reading, {"near_predicted": {"rel": 0.2}}).passed


def test_a_missing_prediction_never_passes():
    reading = Reading({"block 0": 0.80, "block 1": 0.95}, details={"predicted": {"block 0": 0.80}})
    assert not judge(reading, {"near_predicted": {"rel": 9.0}}).passed


def test_a_bound_can_be_stated_for_each_dtype_and_an_unstated_dtype_fails():
    expected = {"at_most": {"float32": 1e-3, "float64": 1e-12}}
    assert judge(Reading(1e-5), expected, dtype="float32").passed
    assert not judge(Reading(1e-5), expected, dtype="float64").passed
    assert not judge(Reading(0.0), expected, dtype="bfloat16").passed


def test_a_failure_names_every_place_that_failed_and_counts_the_rest():
    found = judge(Reading({f"block {i}": 1.0 for i in range(6)} | {"logits": 0.0}), {"at_most": 0.5})
    assert found.where == [f"block {i}" for i in range(6)]
    assert found.found == "block 0: 1, block 1: 1, and 4 more"
