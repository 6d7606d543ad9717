"""The ceilings that arms are compared with: which are measured, and where an arm stands under them."""

from dataclasses import replace

import pytest

from harness.bench.arms.arm_ceilings import ArmCeilings
from harness.bench.work import Work
from harness.core.sizes import SIZES

DEBUG = SIZES["debug"]


def test_little_work_is_not_compared_with_the_bandwidth_of_memory():
    ceilings = ArmCeilings("cpu", DEBUG)
    small = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=1e6)
    names = ceilings.build([small])
    assert not [name for name in names if name.startswith("read")]
    large = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=200 * 2**20)
    again = ceilings.build([large])
    assert "read 192 MiB" in again, "no more than the arm's bytes, of which a cache may contain a larger part"
    assert all(again[name] is work for name, work in names.items()), "a ceiling is not built again"


def test_an_arm_that_few_bytes_limit_has_no_ceiling_instead_of_the_wrong_one():
    """int8 was compared with the ceiling of products, which it could not come near: reading its weights limits it."""
    ceilings = ArmCeilings("cpu", DEBUG)
    work = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=32 * 2**20)
    names = ceilings.build([work])
    seconds = {name: [1e-2] * 6 for name in names}
    assert ceilings.fraction(work, [1e-2] * 6, seconds) is None
    assert ceilings.fraction(work, [1e-9] * 6, seconds)["impossible"], "remembered answers are still found out"
    products = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e9, moved_bytes=2**20)
    assert ceilings.fraction(products, [1.0] * 6, seconds)["regime"] == "compute"


def test_reading_the_same_bytes_for_each_token_has_the_ceiling_of_one_pass():
    """A generation in int8 was compared with reading half a gigabyte, a step of it with no reading at all."""
    ceilings = ArmCeilings("cpu", DEBUG)
    step = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1e6, moved_bytes=119 * 2**20)
    generation = replace(step, flops=2e7, moved_bytes=20 * 119 * 2**20, passes=20)
    names = ceilings.build([step, generation])
    assert [name for name in names if name.startswith("read")] == ["read 112 MiB"]
    seconds = {name: [1e-2] * 6 for name in names}
    found = [ceilings.fraction(step, [2e-2] * 6, seconds), ceilings.fraction(generation, [40e-2] * 6, seconds)]
    assert [each["regime"] for each in found] == ["bandwidth", "bandwidth"]
    assert found[0]["fraction"] == pytest.approx(found[1]["fraction"])


def test_a_longer_read_that_is_faster_is_the_ceiling():
    ceilings = ArmCeilings("cpu", DEBUG)
    works = [
        Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1.0, moved_bytes=mib * 2**20) for mib in (64, 256)
    ]
    seconds = {name: [1e-2] * 6 for name in ceilings.build(works)}
    assert ceilings.fraction(works[0], [1e-2] * 6, seconds)["name"] == "read 256 MiB"
    assert ceilings.fraction(works[1], [1e-2] * 6, seconds)["name"] == "read 256 MiB"


def test_an_arm_is_compared_with_the_ceiling_that_bounds_it():
    ceilings = ArmCeilings("cpu", DEBUG)
    moving = Work(call=lambda: None, answer=lambda: None, tokens=1, flops=1.0, moved_bytes=128 * 2**20)
    names = ceilings.build([moving])
    seconds = {name: [1e-2] * 6 for name in names}
    found = ceilings.fraction(moving, [2e-2] * 6, seconds)
    assert (found["regime"], found["name"]) == ("bandwidth", "read 128 MiB")
    assert found["fraction"] == pytest.approx(0.5)
    assert not found["impossible"]
    assert ceilings.fraction(moving, [0.5e-2] * 6, seconds)["impossible"]
