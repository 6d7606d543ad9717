"""The ceilings that arms are compared with: which are measured, and where an arm stands under them."""

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
    assert "read 256 MiB" in again
    assert all(again[name] is work for name, work in names.items()), "a ceiling is not built again"


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
