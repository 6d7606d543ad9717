"""Weights in int8: each output channel has its own scale, and what is timed is what the name says."""

import pytest
import torch

from harness.bench.arms import ModelPool, arm_specs, work_kinds
from harness.bench.arms.model_pool import round_parameters
from harness.bench.arms.quantised import Int8Linear, quantise, quantise_linears, rounded_to_int8
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.witness import violated_claim, witness
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.subjects.adapters import adapt


@pytest.fixture
def pool():
    made = ModelPool(adapt("gpt:GPT"), SIZES["debug"])
    yield made
    made.close()


def decode(pool, arm):
    return work_kinds()["decode"].build(pool, arm_specs()[arm], 0, context=16)


def test_the_largest_weight_of_each_channel_is_127_and_none_is_off_by_more_than_half_a_step():
    weight = torch.randn(5, 64, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 5)[:, None]
    whole, scales = quantise(weight)
    assert whole.abs().amax(dim=1).tolist() == [127] * 5
    assert ((rounded_to_int8(weight) - weight).abs() <= scales[:, None] / 2 * (1 + 1e-6)).all()


def test_a_channel_of_zeros_stays_zero():
    assert not rounded_to_int8(torch.zeros(2, 3)).any()


def test_a_layer_computes_what_its_rounded_weights_do():
    linear = torch.nn.Linear(64, 32)
    x = torch.randn(3, 5, 64)
    expected = x @ rounded_to_int8(linear.weight.detach()).T + linear.bias
    assert torch.allclose(Int8Linear(linear)(x), expected, atol=1e-5)


def test_a_model_without_linear_layers_is_skipped_by_name():
    with pytest.raises(MissingAbility, match=r"mine has no nn\.Linear"):
        quantise_linears(torch.nn.Sequential(torch.nn.LayerNorm(3)), "mine")


def test_the_oracle_is_rounded_by_output_channel_whatever_the_orientation(pool):
    """Hugging Face's matrices are (in, out): rounded by rows, one large weight would cost a whole input channel."""
    model = pool.oracle()
    fc = model.module.transformer.h[0].mlp.c_fc.weight
    before = fc.detach().clone()
    round_parameters(model, torch.int8)
    assert torch.equal(fc, rounded_to_int8(before.t()).t())


def test_products_run_in_int8_and_an_arm_that_does_not_is_refused(pool):
    claims = arm_specs()["int8"].claims
    seen = {arm: violated_claim(witness(decode(pool, arm).answer), claims=claims) for arm in ("int8", "bf16")}
    assert seen["int8"] is None
    assert "claims int8" in seen["bf16"]


def test_a_scale_that_is_off_is_a_wrong_answer(pool, monkeypatch):
    forward = Int8Linear.forward
    monkeypatch.setattr(Int8Linear, "forward", lambda self, x: forward(self, x) * 1.1)
    chosen = {name: arm_specs()[name] for name in ("fp32", "int8")}
    chosen["fp32" + TWIN_SUFFIX] = chosen["fp32"]
    verify = work_kinds()["decode"].make_verifier(pool, "fp32", chosen, context=16)
    assert verify("fp32", decode(pool, "fp32")).verdict == "pass"
    assert verify("int8", decode(pool, "int8")).verdict == "fail"


def test_a_step_reads_a_quarter_of_the_bytes(pool):
    assert decode(pool, "int8").moved_bytes < 0.3 * decode(pool, "fp32").moved_bytes
