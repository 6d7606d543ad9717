"""What is particular to a device: calls that differ, kernels by name, torch.compile; on the CPU what applies there."""

import os

import pytest
import torch
from torch import nn

from gpt import GPT
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

HERE = "harness.tests.measures.test_device"


class AnotherEachTime(GPT):
    """A kernel that reads memory that nobody wrote: here, the operating system's random bytes."""

    def forward(self, ids, targets=None):
        logits, loss = super().forward(ids, targets)
        noise = torch.frombuffer(bytearray(os.urandom(logits.shape[-1])), dtype=torch.uint8)
        return logits + 1e-2 * noise, loss


class SumsInAnotherOrder(GPT):
    """Gradients that differ by rounding from call to call, as those of atomic additions do."""

    def forward(self, ids, targets=None):
        logits, loss = super().forward(ids, targets)
        self.calls = getattr(self, "calls", 0) + 1
        return logits, None if loss is None else loss * (1 + 1.2e-7 * (self.calls % 2))


class WrongInOneKernel(GPT):
    """Attention that is right in the plain kernel and loses the mask in a fused one."""

    def forward(self, ids, targets=None):
        original = nn.functional.scaled_dot_product_attention

        def attention(q, k, v, **options):
            if not torch.backends.cuda.math_sdp_enabled():
                options = {**options, "is_causal": False}
            return original(q, k, v, **options)

        nn.functional.scaled_dot_product_attention = attention
        try:
            return super().forward(ids, targets)
        finally:
            nn.functional.scaled_dot_product_attention = original


class OtherWhenCompiled(GPT):
    """A branch on whether it is compiled, as around a kernel of one's own."""

    def forward(self, ids, targets=None):
        logits, loss = super().forward(ids, targets)
        return (logits * 1.01 if torch.compiler.is_compiling() else logits), loss


class CompiledForEachLength(GPT):
    """The length chooses a number of Python's, which is a constant of the graph."""

    def forward(self, ids, targets=None):
        logits, loss = super().forward(ids, targets)
        return logits * ([1.0] * 64)[ids.shape[1]], loss


class TakesANumberOut(GPT):
    """`.item()` ends a graph: it is no mistake."""

    def forward(self, ids, targets=None):
        logits, loss = super().forward(ids, targets)
        return logits * (1.0 if ids.sum().item() >= 0 else 2.0), loss


def record_of(shipped, check, name):
    return run(shipped[f"device::{check}"], adapt(f"{HERE}:{name}" if name != "GPT" else "gpt:GPT"))


@pytest.mark.parametrize(
    "check",
    [
        "reruns,compare=outputs",
        "reruns,compare=gradients",
        "attention-kernels,dtype=float32",
        "attention-kernels,dtype=bfloat16",
        "compiled-is-eager",
        "compiled-once",
    ],
)
def test_the_reference_passes(shipped, check):
    assert record_of(shipped, check, "GPT").verdict == "pass"


def test_tf32_is_skipped_by_name_on_the_cpu(shipped):
    record = record_of(shipped, "tf32", "GPT")
    assert (record.verdict, record.message) == ("skip", "TF32: a CUDA device has it, and this run is on cpu")


def test_a_call_that_differs_is_named_by_its_first_operation_and_line(shipped):
    record = record_of(shipped, "reruns,compare=outputs", "AnotherEachTime")
    assert record.verdict == "fail"
    assert "test_device.py:" in record.value["logits"]
    assert record.value["logits"].startswith("other: ")


def test_gradients_may_differ_by_rounding_and_outputs_may_not(shipped):
    record = record_of(shipped, "reruns,compare=gradients", "SumsInAnotherOrder")
    assert record.verdict == "pass"
    assert "mul at harness/tests/measures/test_device.py:" in record.details["says"]
    record = record_of(shipped, "reruns,compare=outputs", "SumsInAnotherOrder")
    assert (record.verdict, record.value["loss"]) == ("fail", "rounding")


def test_a_kernel_that_is_wrong_is_named(shipped):
    record = record_of(shipped, "attention-kernels,dtype=float32", "WrongInOneKernel")
    assert (record.verdict, record.where) == ("fail", ("flash",))
    assert set(record.details["not available"]) == {"memory-efficient", "cudnn"}


def test_what_compiling_changes_is_found(shipped):
    record = record_of(shipped, "compiled-is-eager", "OtherWhenCompiled")
    assert record.verdict == "fail"
    assert "logits" in record.where


def test_a_model_that_is_compiled_for_each_length_is_found(shipped):
    record = record_of(shipped, "compiled-once", "CompiledForEachLength")
    assert (record.verdict, record.value) == ("fail", 4)


def test_a_graph_break_is_said_and_no_failure(shipped):
    record = record_of(shipped, "compiled-once", "TakesANumberOut")
    assert record.verdict == "pass"
    assert "torch.compile runs parts of it eagerly: " in record.details["says"]
