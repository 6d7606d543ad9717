"""The ceilings and the roofline: which ceiling bounds an arm, and the fraction of it that the arm reaches."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from harness.bench import ceilings
from harness.bench.ceilings import Ceiling, Roofline, ceiling_specs, copy, gemm, gemm_shapes, launch, read
from harness.bench.costs import Cost
from harness.bench.work import Work
from harness.core.errors import MissingResource
from harness.core.sizes import SIZES

SMALL = SIZES["debug"]
ROUNDS = 6
# 100 FLOP/s, 10 bytes/s, 2 operations a second.
GEMM = Ceiling("gemm float32 square", "compute", 100, (1.0,) * ROUNDS, "float32")
READ = Ceiling("read", "bandwidth", 10, (1.0,) * ROUNDS)
LAUNCH = Ceiling("launch", "launch", 2, (1.0,) * ROUNDS)
ROOFLINE = Roofline((GEMM, READ, LAUNCH))


@pytest.mark.parametrize(
    ("cost", "operations", "name", "seconds"),
    [
        (Cost(1000, 50), 4, "gemm float32 square", 10),
        (Cost(100, 50), 4, "read", 5),
        (Cost(100, 50), 40, "launch", 20),
        (Cost(0, 50), 0, "read", 5),
    ],
)
def test_the_slowest_part_of_a_cost_bounds_it(cost, operations, name, seconds):
    bound = ROOFLINE.bound(cost, dtype="float32", operations=operations)
    assert (bound.ceiling.name, bound.seconds) == (name, seconds)


def test_a_fraction_is_the_least_time_over_the_time():
    found = ROOFLINE.fraction(Cost(1000, 50), [12.5] * ROUNDS, dtype="float32")
    assert (found.value, found.name, found.regime) == (pytest.approx(0.8), "gemm float32 square", "compute")
    assert not found.impossible


def test_a_machine_that_is_slow_in_some_rounds_does_not_change_the_fraction():
    """The ceiling and the arm are paired by round: both ran on the same machine."""
    speed = [1, 3, 1, 2, 5, 1]
    roofline = Roofline((Ceiling("gemm", "compute", 100, tuple(1.0 * s for s in speed), "float32"), READ))
    found = roofline.fraction(Cost(1000, 1), [20.0 * s for s in speed], dtype="float32")
    assert found.value == found.low == found.high == pytest.approx(0.5)


def test_noise_of_the_ceiling_widens_the_interval():
    seconds = (1.0, 1.1, 0.9, 1.2, 0.8, 1.0)
    found = Roofline((Ceiling("gemm", "compute", 100, seconds, "float32"),)).fraction(
        Cost(1000, 0), [20.0] * ROUNDS, dtype="float32"
    )
    assert found.low < 0.48 < found.value < 0.52 < found.high


def test_an_arm_above_its_ceiling_is_impossible():
    assert ROOFLINE.fraction(Cost(1000, 50), [9.0] * ROUNDS, dtype="float32").impossible


def test_an_arm_whose_interval_includes_its_ceiling_is_not_impossible():
    found = ROOFLINE.fraction(Cost(1000, 50), [9.0, 11.0, 9.5, 10.0, 9.0, 10.0], dtype="float32")
    assert found.value > 1 > found.low
    assert not found.impossible


def test_the_best_shape_is_the_ceiling():
    faster = Ceiling("gemm float32 c_fc", "compute", 500, (2.0,) * ROUNDS, "float32")  # longer, and 250 FLOP/s
    sixteen = Ceiling("gemm bfloat16 c_fc", "compute", 900, (1.0,) * ROUNDS, "bfloat16")
    roofline = Roofline((GEMM, faster, sixteen))
    assert roofline.best("compute", dtype="float32") == faster
    assert roofline.bound(Cost(1000, 0), dtype="float32").seconds == 4
    found = roofline.fraction(Cost(1000, 0), [8.0] * ROUNDS, dtype="float32")
    assert (found.name, found.value) == ("gemm float32 c_fc", pytest.approx(0.5))


def test_without_one_of_its_ceilings_a_cost_has_no_bound():
    """The missing ceiling could be the bound."""
    assert ROOFLINE.bound(Cost(1000, 50), dtype="bfloat16") is None
    assert ROOFLINE.fraction(Cost(1000, 50), [1.0] * ROUNDS, dtype="bfloat16") is None
    assert Roofline((GEMM, READ)).bound(Cost(1000, 50), dtype="float32", operations=3) is None
    assert ROOFLINE.bound(Cost(0, 0), dtype="float32") is None


def test_rounds_that_do_not_pair_are_refused():
    with pytest.raises(ValueError, match="round by round"):
        ROOFLINE.fraction(Cost(1000, 50), [10.0] * (ROUNDS + 1), dtype="float32")


# The works of the ceilings


@pytest.mark.parametrize("name", ["c_fc", "mlp.c_proj", "head", "square"])
def test_a_product_computes_the_flops_that_it_states(name):
    m, n, k = gemm_shapes(SMALL, tokens=16, side=8)[name]
    work = gemm("cpu", "float32", m=m, n=n, k=k)
    with FlopCounterMode(display=False) as counter:
        assert work.call().shape == (m, n)
    assert counter.get_total_flops() == work.flops
    assert work.moved_bytes == 4 * (m * n + n * k + k * m)


def test_the_products_are_the_models():
    shapes = gemm_shapes(SMALL, tokens=16, side=8)
    assert shapes["c_fc"] == (16, 4 * SMALL.width, SMALL.width)
    assert shapes["mlp.c_proj"] == (16, SMALL.width, 4 * SMALL.width)
    assert shapes["head"] == (2, SMALL.vocab_size, SMALL.width)


def test_a_read_reaches_every_element_and_a_copy_writes_as_much_as_it_reads():
    elements = 1 << 12
    reading = read("cpu", buffer_bytes=4 * elements)
    assert reading.answer() * 2 == elements
    assert reading.moved_bytes == 4 * elements
    copying = copy("cpu", buffer_bytes=4 * elements)
    assert copying.answer().numel() * 2 == elements
    assert copying.moved_bytes == 4 * elements


class Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_a_launch_has_as_many_operations_as_it_states():
    work = launch("cpu")
    with Operations() as seen:
        work.call()
    assert seen.count == work.operations == ceilings.LAUNCHES


def test_a_ceiling_is_measured_by_the_amount_of_its_regime():
    work = Work(call=dict, answer=dict, tokens=0, flops=8, moved_bytes=6, operations=4)
    found = {
        one.name: one.measured(work, [2.0, 2.0]) for one in ceiling_specs("cpu", SMALL, dtypes=("float32", "bfloat16"))
    }
    assert found["gemm float32 c_fc"].rate == 4
    assert found["gemm bfloat16 head"].dtype == "bfloat16"
    assert found["read"].rate == found["copy"].rate == 3
    assert found["launch"].rate == 2
    assert len(found) == 2 * 4 + 3


# Absent devices and emulated dtypes


def test_sixteen_bits_that_are_emulated_are_no_ceiling(monkeypatch, tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    monkeypatch.setattr(ceilings, "CPUINFO", cpuinfo)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512f\n", encoding="utf-8")
    ceilings.require("cpu", "float32")
    with pytest.raises(MissingResource, match="bfloat16: this processor emulates it"):
        gemm("cpu", "bfloat16", m=2, n=2, k=2)
    cpuinfo.write_text("processor\t: 0\nflags\t\t: fpu amx_bf16\n", encoding="utf-8")
    gemm("cpu", "bfloat16", m=2, n=2, k=2)
    with pytest.raises(MissingResource, match="float16"):
        gemm("cpu", "float16", m=2, n=2, k=2)


def test_a_processor_without_readable_flags_is_measured(monkeypatch, tmp_path):
    monkeypatch.setattr(ceilings, "CPUINFO", tmp_path / "nothing")
    gemm("cpu", "bfloat16", m=2, n=2, k=2)


@pytest.mark.parametrize("build", [read, copy, launch])
def test_a_device_that_is_absent_is_named(build, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(MissingResource, match="no CUDA device"):
        build("cuda")


def test_a_buffer_is_larger_than_the_largest_cache_up_to_a_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(ceilings, "CPU_CACHES", tmp_path)
    assert ceilings.streaming_bytes("cpu") == 256 * ceilings.MIB  # not reported: 64 MiB, four times
    for index, size in enumerate(["48K", "2048K", "32M"]):
        (tmp_path / f"index{index}").mkdir()
        (tmp_path / f"index{index}" / "size").write_text(size + "\n", encoding="utf-8")
    assert ceilings.last_level_cache_bytes("cpu") == 32 * 2**20
    assert ceilings.streaming_bytes("cpu") == 128 * 2**20
    (tmp_path / "index2" / "size").write_text("491520K\n", encoding="utf-8")
    assert ceilings.streaming_bytes("cpu") == ceilings.LARGEST_BUFFER_BYTES
