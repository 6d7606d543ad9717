"""A device is available or named in one line; arithmetic is exact on it inside a check, and restored afterwards."""

import pytest
import torch

from harness.core.devices import EXACT, TF32, arithmetic, arithmetic_of, moved, require_device, set_arithmetic
from harness.core.errors import HarnessError


@pytest.fixture(autouse=True)
def restored():
    before = arithmetic()
    yield
    set_arithmetic(before)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("cuda:77", "not available on this machine or in this build of torch"),
        ("toaster", "not available on this machine or in this build of torch"),
        ("meta", "its tensors have no values"),
    ],
)
def test_a_device_that_is_not_there_is_one_line(name, reason):
    with pytest.raises(HarnessError, match=f"--device {name}: {reason}") as raised:
        require_device(name)
    assert "\n" not in str(raised.value)


def test_arithmetic_is_exact_on_a_device_and_restored_afterwards():
    set_arithmetic(("high", True, True, True))
    with arithmetic_of("cuda"):
        assert arithmetic() == EXACT
        assert not torch.backends.cuda.matmul.allow_tf32
        with arithmetic_of("cuda", TF32):
            assert torch.backends.cuda.matmul.allow_tf32
            assert torch.backends.cudnn.allow_tf32
        assert arithmetic() == EXACT
    assert arithmetic() == ("high", True, True, True)


def test_arithmetic_on_the_cpu_stays_as_the_user_set_it():
    set_arithmetic(("medium", True, True, True))
    with arithmetic_of("cpu"):
        assert torch.get_float32_matmul_precision() == "medium"


def test_a_setting_of_the_newer_interface_is_no_crash():
    """`torch.get_float32_matmul_precision` raises after `fp32_precision` was set, and with it every check did."""
    before = arithmetic()
    torch.backends.cuda.matmul.fp32_precision = "tf32"
    assert arithmetic()[0] == "mixed"
    set_arithmetic(before)
    assert arithmetic() == before
    assert torch.backends.cuda.matmul.fp32_precision == "ieee"


def test_a_tensor_that_is_there_already_is_not_copied():
    ids = torch.arange(6)
    assert moved(ids, "cpu") is ids
