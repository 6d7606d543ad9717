"""The witness, on calls that do and do not run what an arm's name says."""

import dataclasses
import math
import shutil
import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.bench.memory import Trace
from harness.bench.witness import Witness, busy_threads, examine, violated_claim, witness
from harness.core.errors import HarnessError

B, H, T, D = 1, 2, 64, 16
q, k, v = (torch.randn(B, H, T, D, generator=torch.Generator().manual_seed(seed)) for seed in range(3))
linear = nn.Linear(D, 4 * D)
SCORES_AND_SUM_FLOPS = 2 * 2 * B * H * T * T * D


def formula(q=q, k=k, v=v):
    return (q @ k.mT / math.sqrt(D)).softmax(-1) @ v


def head_by_head():
    return [formula(q[0, h], k[0, h], v[0, h]) for h in range(H)]


def einsum():
    weights = torch.einsum("bhtd,bhsd->bhts", q, k).softmax(-1)
    return torch.einsum("bhts,bhsd->bthd", weights, v)


def transposed(queries=T):
    return v.mT @ (q[:, :, :queries] @ k.mT).softmax(-1).mT


def flash():
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


def sdpa_by_its_formula():
    with sdpa_kernel(SDPBackend.MATH):
        return flash()


def in_bfloat16(call):
    def wrapped():
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return call()

    return wrapped


@torch.no_grad()
def seen(call) -> Witness:
    return witness(call)


@pytest.mark.parametrize("call", [formula, head_by_head, einsum, transposed], ids=lambda call: call.__name__)
def test_attention_by_its_formula_is_seen_with_its_score_matrix(call):
    found = seen(call)
    assert list(found.attention) == ["formula"]
    assert found.scores in ((B * H, T, T), (1, T, T))
    assert found.flops == {"float32": SCORES_AND_SUM_FLOPS}
    assert violated_claim(found, claims={"attention": "formula", "quadratic": True, "compiled": False}) is None


def test_flash_attention_is_seen_and_writes_no_score_matrix():
    found = seen(flash)
    assert found.attention == {"flash": "aten::_scaled_dot_product_flash_attention_for_cpu"}
    assert found.scores is None
    assert found.flops == {"float32": SCORES_AND_SUM_FLOPS}
    assert violated_claim(found, claims={"attention": ["flash", "efficient"], "quadratic": False}) is None


def test_sdpa_by_its_formula_is_not_flash():
    found = seen(sdpa_by_its_formula)
    assert list(found.attention) == ["math"]
    assert found.scores == (B * H, T, T)
    assert found.flops == {"float32": SCORES_AND_SUM_FLOPS}
    violation = violated_claim(found, claims={"attention": "flash"})
    assert violation == "claims flash attention, but it ran as math (aten::_scaled_dot_product_attention_math)"


def test_the_formula_violates_the_claim_of_flash_and_flash_that_of_the_formula():
    violation = violated_claim(seen(formula), claims={"attention": "flash"})
    assert violation == "claims flash attention, but it ran as formula (aten::bmm, softmax, aten::bmm)"
    violation = violated_claim(seen(flash), claims={"attention": "formula"})
    assert violation is not None
    assert "ran as flash (aten::_scaled_dot_product_flash_attention_for_cpu)" in violation


def test_one_layer_that_falls_back_violates_the_claim():
    found = seen(lambda: (flash(), formula()))
    assert list(found.attention) == ["flash", "formula"]
    assert violated_claim(found, claims={"attention": "flash"}) is not None


def test_a_score_matrix_violates_the_claim_of_none():
    claims = {"quadratic": False}
    assert violated_claim(seen(formula), claims=claims) == f"claims no score matrix, but wrote one of {H} x {T} x {T}"
    assert "wrote none" in str(violated_claim(seen(flash), claims={"quadratic": True}))


def test_a_strip_of_scores_for_a_few_queries_is_no_score_matrix():
    found = seen(lambda: transposed(queries=T // 8))
    assert found.scores == (B * H, T // 8, T)
    assert violated_claim(found, claims={"attention": "formula", "quadratic": False}) is None


def test_the_row_of_scores_of_one_new_token_is_no_score_matrix():
    found = seen(lambda: formula(q[:, :, -1:]))
    assert found.scores == (B * H, 1, T)
    assert violated_claim(found, claims={"attention": "formula", "quadratic": False}) is None


def test_two_products_without_a_softmax_between_are_no_attention():
    """A mixture of experts has batched products too."""
    found = seen(lambda: F.gelu(q[0] @ k[0].mT) @ v[0])
    assert not found.attention
    assert (
        violated_claim(found, claims={"attention": "formula"})
        == "claims formula attention, but no attention could be seen"
    )
    assert "could be seen" in str(violated_claim(found, claims={"quadratic": False}))


def test_a_product_is_counted_once_with_any_caller():
    found = seen(lambda: linear(q[0]))  # linear calls addmm
    assert found.flops == {"float32": 2 * H * T * D * 4 * D}
    assert found.operations == 2  # q[0] is one of them


def test_a_step_of_training_costs_three_times_its_forward_pass():
    x = torch.randn(T, D, requires_grad=True)
    found = witness(lambda: linear(x).sum().backward())
    linear.zero_grad()
    assert found.flops == {"float32": 3 * 2 * T * D * 4 * D}


def test_the_backward_pass_of_flash_attention_is_counted():
    leaves = [tensor.clone().requires_grad_() for tensor in (q, k, v)]
    found = witness(lambda: F.scaled_dot_product_attention(*leaves, is_causal=True).sum().backward())
    assert list(found.attention) == ["flash"]
    assert found.flops == {"float32": (2 + 5) * SCORES_AND_SUM_FLOPS // 2}


@pytest.mark.parametrize("call", [formula, flash, lambda: linear(q)], ids=["formula", "flash", "linear"])
def test_autocast_is_bfloat16_and_its_absence_is_not(call):
    claims = {"dtype": "bfloat16"}
    assert violated_claim(seen(in_bfloat16(call)), claims=claims) is None
    violation = violated_claim(seen(call), claims=claims)
    assert violation == "claims bfloat16, but its matrix products ran in float32 (100%)"


def test_weights_of_two_bytes_that_are_multiplied_in_four_are_not_bfloat16():
    weight = linear.weight.bfloat16()
    assert violated_claim(seen(lambda: F.linear(q, weight.float())), claims={"dtype": "bfloat16"}) is not None


def test_a_claim_about_products_that_were_not_seen_is_violated():
    nothing = seen(lambda: q + k)
    assert violated_claim(nothing, claims={"dtype": "float32"}) == "claims float32, but no matrix product could be seen"
    little = seen(formula)
    violation = violated_claim(little, claims={"dtype": "float32"}, flops=4 * SCORES_AND_SUM_FLOPS)
    assert violation == "claims float32, but only 25% of its matrix products could be seen"
    assert violated_claim(little, claims={"dtype": "float32"}, flops=SCORES_AND_SUM_FLOPS) is None


needs_a_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="Inductor needs a C++ compiler on the CPU")


@needs_a_compiler
def test_a_formula_that_the_compiler_replaces_by_flash_attention_violates_the_claim():
    """Inductor replaces this formula by SDPA: naive against flash would be flash against flash.

    The first call compiles; the witness must be of the call, not of the compilation.
    """
    found = seen(torch.compile(lambda: formula()))
    assert found.graphs == 1
    assert "ran as flash" in str(violated_claim(found, claims={"attention": "formula"}))
    assert violated_claim(found, claims={"attention": "flash", "compiled": True}) is None
    assert (
        violated_claim(found, claims={"compiled": False}) == "claims not to be compiled, but called 1 compiled graphs"
    )


@needs_a_compiler
def test_a_formula_that_stays_a_formula_is_seen_inside_compiled_code():
    """The softmax is in the graph's own C++, where the profiler sees no operation."""
    future = torch.ones(T, T, dtype=torch.bool).triu(1)

    def masked():
        weights = (q @ k.mT / math.sqrt(D)).masked_fill(future, -math.inf).softmax(-1)
        return F.linear(weights @ v, linear.weight)

    found = seen(in_bfloat16(torch.compile(masked)))
    assert found.attention == {"formula": "aten::bmm, compiled code, aten::bmm"}
    assert found.flops_in_graphs == sum(found.flops.values()) == SCORES_AND_SUM_FLOPS + 2 * B * H * T * D * 4 * D
    claims = {"attention": "formula", "compiled": True, "dtype": "bfloat16", "quadratic": True}
    assert violated_claim(found, claims=claims) is None


def test_a_compiled_arm_that_runs_eagerly_violates_the_claim():
    with torch.compiler.set_stance("force_eager"):
        found = seen(torch.compile(formula))
    assert violated_claim(found, claims={"compiled": True}) == "claims to be compiled, but no compiled graph ran"


def test_products_outside_the_compiled_graphs_violate_the_claim():
    found = dataclasses.replace(seen(formula), graphs=1, flops_in_graphs=SCORES_AND_SUM_FLOPS // 4)
    violation = violated_claim(found, claims={"compiled": True})
    assert violation == "claims to be compiled, but 75% of its matrix products ran outside the compiled graphs"


def test_an_unknown_claim_is_an_error():
    with pytest.raises(HarnessError, match="atention"):
        violated_claim(seen(flash), claims={"atention": "flash"})


def test_the_trace_that_names_the_kernels_has_their_memory_too():
    found = seen(formula)
    assert found.peak_bytes == found.ledgers["profiler"]
    assert found.largest_bytes == B * H * T * T * 4
    assert found.peak_bytes >= 2 * found.largest_bytes


def test_a_row_is_plain_data():
    row = seen(formula).as_row(busy_threads=1.5)
    assert row["products"] == {"float32": 1.0}
    assert row["attention"] == ["formula"]
    assert [name for name in row["kernels"] if name.startswith("aten::bmm x2 (")]
    assert 0 < row["products_seconds"] < 1
    assert (row["compiled"], row["busy_threads"]) == (False, 1.5)


def host(name, *, at, lasts, sizes=(), dtype="c10::BFloat16"):
    arguments = {"Input Dims": [list(size) for size in sizes], "Input type": [dtype] * len(sizes)}
    return {"name": name, "cat": "cpu_op", "ts": at, "dur": lasts, "tid": 1, "args": arguments}


def test_on_cuda_the_kernels_that_were_launched_are_named():
    """A trace as CUDA gives it, written by hand: launches on the host, kernels and memory on the device."""
    sizes = [(B, H, T, D)] * 3
    kernel = {"cat": "kernel", "ts": 2, "tid": 7}
    account = {"Device Type": 1, "Bytes": 512, "Total Allocated": 512}
    events = [
        host("aten::scaled_dot_product_attention", at=0, lasts=9, sizes=sizes),
        host("aten::_scaled_dot_product_flash_attention", at=1, lasts=7, sizes=sizes),
        host("aten::_flash_attention_forward", at=2, lasts=5, sizes=sizes),
        {**kernel, "name": "flash_fwd_kernel", "dur": 50},
        {**kernel, "name": "vectorized_elementwise_kernel", "dur": 20},
        {**kernel, "name": "vectorized_elementwise_kernel", "dur": 40},
        {"name": "[memory]", "cat": "cpu_instant_event", "args": {**account, "Device Type": 0, "Bytes": 4096}},
        {"name": "[memory]", "cat": "cpu_instant_event", "args": account},
    ]
    found = examine(Trace(events, {"allocator": 512, "reserved": 2**21}))
    assert found.kernels == ("vectorized_elementwise_kernel x2 (55%)", "flash_fwd_kernel x1 (45%)")
    assert found.products_seconds is None, "the host only launches them"
    assert (found.operations, found.largest_bytes, found.peak_bytes) == (3, 512, 512)
    assert found.attention == {"flash": "aten::_scaled_dot_product_flash_attention"}
    assert found.flops == {"bfloat16": SCORES_AND_SUM_FLOPS}


def test_operators_that_autograd_calls_are_operations_and_its_own_spans_are_not():
    products = [host("aten::mm", at=at, lasts=2, sizes=[(T, D), (D, T)]) for at in (1, 4)]
    backward = host("autograd::engine::evaluate_function: AddmmBackward0", at=0, lasts=7)
    found = examine(Trace([backward, *products], {}))
    assert found.operations == 2
    assert found.kernels == ("aten::mm x2 (100%)",)
    assert found.products_seconds == pytest.approx(4e-6)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("mkl::_mkl_linear", [(T, D), (99999, 1), (4 * D, D), ()]),
        ("mkldnn::_linear_pointwise", [(T, D), (4 * D, D), (4 * D,)]),
        ("mkldnn::_linear_pointwise", [(T, D), (T, 4 * D), (4 * D, D), (4 * D,)]),
    ],
    ids=["packed by MKL", "oneDNN", "oneDNN with a sum"],
)
def test_packed_weights_are_multiplied_at_their_own_size(name, sizes):
    found = examine(Trace([host(name, at=0, lasts=1, sizes=sizes)], {}))
    assert found.flops == {"bfloat16": 2 * T * D * 4 * D}


def test_a_call_that_sleeps_has_no_busy_core_and_one_that_computes_has_some():
    assert busy_threads(lambda: time.sleep(0.02)) < 0.5
    assert busy_threads(lambda: sum(range(300_000))) > 0.05
