"""The subject compared with its peers."""

import random

import pytest

from benchmarks.run import ComparisonRunner
from harness.report import page
from harness.report.benchmarks.arm_rows import arms
from harness.tests.report.sample_benchmark import comparison
from harness.tests.report.sample_run import run


def with_peer(subject, peer, *, control):
    """A run of the subject's `cached` and the peer `hf-sdpa`, with different times in every round."""
    times = {"cached": subject, "hf-sdpa": peer}
    order = [control, *(name for name in times if name != control)]
    row = comparison("generation", "decode", {name: times[name] for name in order}, axis="context", point=16)
    noise = random.Random(0)
    for arm in row["arms"]:
        arm["peer"] = arm["arm"] == "hf-sdpa"
        arm["seconds"] = [times[arm["arm"]] * noise.uniform(1, 1.01) for _ in range(12)]
        arm["ceiling"] = {"name": "read", "regime": "bandwidth", "fraction": 0.68, "low": 0.67, "high": 0.69}
        arm["witness"] = {"operations": 640, "products_seconds": 0.8 * times[arm["arm"]],
                          "kernels": ["aten::addmm x48 (71%)", "aten::mm x1 (20%)", "aten::add x25 (2%)"]}  # fmt: skip
    made = ComparisonRunner(config=None, declared={}, rows={("generation decode", 16): row})
    return run("bench", [row], ending={"beside_peers": made.evidence.beside_peers()})


@pytest.mark.parametrize("control", ["cached", "hf-sdpa"])
def test_a_peer_that_is_faster_has_a_row_with_what_both_did(control):
    text = page(None, with_peer(0.030, 0.024, control=control))
    assert "the subject is faster in 0, slower in 1, and as fast in 0; 0 inconclusive." in text
    (row,) = [line for line in text.splitlines() if line.startswith("| generation decode")]
    assert "| hf-sdpa | 1.25x [" in row
    assert "68% of bandwidth, 80% of the time in products, 640 operations" in row
    assert "aten::addmm x48 (71%), aten::mm x1 (20%) |" in row


def names_of_pairs(order, beside=None):
    """Return the pairs of arms that are compared; those of other programs are called hf and ct."""
    row = comparison("generation", "decode", order)
    for arm in row["arms"]:
        arm |= {"peer": arm["arm"] in ("hf", "ct"), "beside": beside if arm["arm"] == "hf" else None}
    made = ComparisonRunner(config=None, declared={}, rows={("generation decode", None): row})
    return [(pair["arm"], pair["peer"]) for pair in made.evidence.beside_peers()]


def test_a_peer_is_compared_with_the_arm_that_does_it_in_its_way_or_the_control_or_each():
    assert names_of_pairs({"alone": 2.0, "draft": 1.0, "hf": 1.5}, beside="draft") == [("draft", "hf")]
    assert names_of_pairs({"alone": 2.0, "hf": 1.5}, beside="draft") == [], "plain decoding is other work"
    assert names_of_pairs({"alone": 2.0, "draft": 1.0, "hf": 1.5}) == [("alone", "hf")]
    assert names_of_pairs({"hf": 1.5, "cached": 1.6, "packed": 1.0, "ct": 1.2}) == [
        ("cached", "hf"), ("packed", "hf"), ("cached", "ct"), ("packed", "ct"),
    ]  # fmt: skip


def test_a_peer_that_is_slower_has_no_row():
    text = page(None, with_peer(0.020, 0.024, control="cached"))
    assert "the subject is faster in 1, slower in 0, and as fast in 0; 0 inconclusive." in text
    assert "peer is faster by" not in text


def test_a_run_without_a_peer_has_no_section_of_peers():
    assert "Compared with peers" not in page(None, run("bench", [comparison("attention", "forward", {"a": 2.0})]))


def test_products_that_took_longer_than_the_call_count_as_all_of_it():
    row = with_peer(0.030, 0.024, control="cached")[1]
    row["arms"][0]["witness"]["products_seconds"] = 0.050
    assert [round(arm["in_products"], 2) for arm in arms(row)] == [1.0, 0.8]
