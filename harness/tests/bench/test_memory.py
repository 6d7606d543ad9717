"""The memory ledgers on a case with known peaks: attention over 1024 tokens, 12 heads of 64, float32."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F

from harness.bench.memory import disagreement, peak_bytes, peak_bytes_in_child, trace
from harness.core.environment import HUGE_PAGES
from harness.core.errors import MissingResource

MIB = 2**20
H, T, D = 12, 1024, 64


@pytest.fixture
def one_thread():
    """SDPA's scratch is 0.56 MiB a thread; the known figure is for one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def queries_keys_values():
    return [torch.randn(1, H, T, D) for _ in range(3)]


def naive_attention():
    q, k, v = queries_keys_values()
    future = torch.ones(T, T, dtype=torch.bool).triu(1)

    @torch.no_grad()
    def call():
        scores = (q @ k.mT).mul_(1 / math.sqrt(D)).masked_fill_(future, -math.inf)
        return scores.softmax(-1) @ v

    return call


def flash_attention():
    q, k, v = queries_keys_values()
    return torch.no_grad()(lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True))


@pytest.mark.usefixtures("one_thread")
def test_the_allocator_ledger_gives_the_known_peaks():
    # Naive: the scores and their softmax, 48 MiB each, and the output of 3. SDPA: the output, row statistics, scratch.
    assert peak_bytes(naive_attention())["profiler"] / MIB == pytest.approx(99.00, rel=0.01)
    assert peak_bytes(flash_attention())["profiler"] / MIB == pytest.approx(3.61, rel=0.01)


def test_the_allocator_ledger_counts_scratch_by_the_thread():
    scratch_of_a_thread = (256 * 512 + 2 * 256 + 256 * D) * 4  # torch's CPU kernel: query block 256, key block 512
    output_and_statistics = H * T * D * 4 + H * T * 4
    expected = output_and_statistics + torch.get_num_threads() * scratch_of_a_thread
    assert peak_bytes(flash_attention())["profiler"] == pytest.approx(expected, rel=0.01)


def test_memory_allocated_before_the_call_is_not_counted():
    allocated = torch.empty(8 * MIB, dtype=torch.uint8)
    assert peak_bytes(lambda: torch.empty(MIB, dtype=torch.uint8))["profiler"] == MIB
    assert allocated.numel() == 8 * MIB


def test_memory_that_a_measured_call_left_allocated_is_not_counted_again():
    """The profiler's running total continues from there."""
    allocated = []
    peak_bytes(lambda: allocated.append(torch.empty(8 * MIB, dtype=torch.uint8)))
    assert peak_bytes(lambda: torch.empty(MIB, dtype=torch.uint8))["profiler"] == MIB


def test_a_peak_before_the_end_of_the_call_is_counted():
    def call():
        torch.empty(16 * MIB, dtype=torch.uint8)
        return torch.empty(MIB, dtype=torch.uint8)

    assert peak_bytes(call)["profiler"] == 16 * MIB


def test_a_call_that_only_releases_has_a_peak_of_zero():
    tensors = [torch.empty(MIB, dtype=torch.uint8)]
    assert peak_bytes(tensors.clear)["profiler"] == 0


def test_a_call_without_tensors_has_a_peak_of_zero():
    assert peak_bytes(lambda: sum(range(10)))["profiler"] == 0


def test_a_trace_with_shapes_gives_the_same_peak():
    call = naive_attention()
    assert trace(call).ledgers == peak_bytes(call)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_tensors_are_counted_apart_from_reserved_memory():
    for ledgers in (
        peak_bytes(lambda: torch.empty(30 * MIB, dtype=torch.uint8, device="cuda"), device="cuda"),
        trace(lambda: torch.empty(30 * MIB, dtype=torch.uint8, device="cuda"), device="cuda").ledgers,
    ):
        assert ledgers["allocator"] == 30 * MIB
        assert ledgers["reserved"] >= 30 * MIB
        assert ledgers["device"] >= 30 * MIB


@pytest.mark.parametrize(
    ("ledgers", "text"),
    [
        ({"profiler": 100 * MIB, "closed form": 104 * MIB}, None),  # within 5%
        ({"profiler": MIB, "closed form": 2 * MIB}, None),  # within a megabyte
        ({"profiler": 100 * MIB, "closed form": 106 * MIB}, "profiler 100.00 MiB, closed form 106.00 MiB"),
        ({"profiler": 100 * MIB, "closed form": 100 * MIB, "child process": 10 * MIB}, "child process 10.00 MiB"),
        ({"allocator": 100 * MIB, "reserved": 200 * MIB, "device": 300 * MIB}, None),  # ledgers of other things
        ({"profiler": 100 * MIB}, None),
        ({}, None),
    ],
)
def test_ledgers_that_disagree_are_reported_in_one_line(ledgers, text):
    line = disagreement(ledgers)
    assert line is None if text is None else text in line


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's ledger is read from Linux's /proc")
@pytest.mark.parametrize("huge_pages", ["0", "1"])
def test_the_kernels_ledger_agrees_with_the_known_peak(huge_pages, monkeypatch):
    """With transparent huge pages, which benchmarks enable, resident memory would be counted in units of 2 MiB."""
    monkeypatch.setenv(HUGE_PAGES, huge_pages)
    peak = peak_bytes_in_child("harness.tests.bench.test_memory:naive_attention", threads=1)
    assert peak / MIB == pytest.approx(99.0, rel=0.03)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's ledger is read from Linux's /proc")
def test_a_child_that_dies_is_reported_with_the_end_of_its_stderr():
    with pytest.raises(RuntimeError, match=r"(?s)died with status 1: .*no_such_recipe"):
        peak_bytes_in_child("harness.tests.bench.test_memory:no_such_recipe")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the kernel's ledger is read from Linux's /proc")
def test_a_child_that_takes_too_long_is_ended_and_reported():
    with pytest.raises(RuntimeError, match=r"naive_attention was still busy after 0\.05 s"):
        peak_bytes_in_child("harness.tests.bench.test_memory:naive_attention", limit_seconds=0.05)


def test_the_kernels_ledger_raises_where_it_does_not_work(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda path: False)
    with pytest.raises(MissingResource, match="clear_refs"):
        peak_bytes_in_child("harness.tests.bench.test_memory:naive_attention")
