"""Weights of linear layers in another form: packed, in eight bits, in four; what is timed is what the name says."""

import importlib.util

import pytest
import torch

from harness.bench.arms import ModelPool, arm_specs, work_kinds
from harness.bench.arms.stored_linears import (
    FORMS,
    GROUP,
    rounded_to_int4,
    rounded_to_int8,
    store_linears,
    to_int4,
    to_int8,
)
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
    whole, scales = to_int8(weight)
    assert whole.abs().amax(dim=1).tolist() == [127] * 5
    assert ((rounded_to_int8(weight) - weight).abs() <= scales[:, None] / 2 * (1 + 1e-6)).all()


def test_the_ends_of_each_group_are_0_and_15_and_no_weight_is_off_by_more_than_half_a_step():
    weight = torch.randn(5, 4 * GROUP, generator=torch.Generator().manual_seed(0)) * torch.logspace(-3, 2, 5)[:, None]
    weight += 7.0  # the middle of a group need not be 0
    whole, scales, _ = to_int4(weight)
    groups = whole.unflatten(1, (-1, GROUP))
    assert groups.amin(-1).unique().tolist() == [0]
    assert groups.amax(-1).unique().tolist() == [15]
    off = (rounded_to_int4(weight) - weight).abs().unflatten(1, (-1, GROUP)).amax(-1)
    assert (off <= scales / 2 * (1 + 1e-3) + 1e-6).all()


@pytest.mark.parametrize("rounded", [rounded_to_int8, rounded_to_int4])
def test_a_channel_of_zeros_stays_zero(rounded):
    assert not rounded(torch.zeros(2, 3)).any()


@pytest.mark.parametrize("inputs", [64, 48])  # whole groups of int4, and not
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("form", "rounded"), [("packed", lambda weight: weight), ("int8", rounded_to_int8), ("int4", rounded_to_int4)]
)
def test_a_layer_computes_what_its_rounded_weights_do(form, rounded, bias, inputs):
    linear = torch.nn.Linear(inputs, 211, bias=bias)
    x = torch.randn(3, 5, inputs)
    with torch.no_grad():
        expected = x @ rounded(linear.weight).T + (linear.bias if bias else 0)
        assert torch.allclose(FORMS[form](linear)(x), expected, atol=1e-5)


def test_a_model_without_linear_layers_is_skipped_by_name():
    with pytest.raises(MissingAbility, match=r"mine has no nn\.Linear"):
        store_linears(torch.nn.Sequential(torch.nn.LayerNorm(3)), "int8", "mine")


@pytest.mark.parametrize(("form", "rounded"), [("int8", rounded_to_int8), ("int4", rounded_to_int4)])
def test_the_oracle_is_rounded_by_output_channel_whatever_the_orientation(pool, form, rounded):
    """Hugging Face's matrices are (in, out): rounded by rows, one large weight would cost a whole input channel."""
    plain, stored = pool.oracle(), pool.oracle_storing(form, torch.float64)
    before, after = (model.module.transformer.h[0].mlp.c_fc.weight.detach() for model in (plain, stored))
    assert torch.equal(after, rounded(before.t()).t())
    embedding, head = stored.module.transformer.wte.weight, stored.module.lm_head.weight
    assert torch.equal(embedding, plain.module.transformer.wte.weight), "the embedding of a tied head stays"
    assert torch.equal(head, rounded(embedding.detach()))


@pytest.mark.parametrize("arm", ["int8", "int4", "fp32-packed", "bf16-packed"])
def test_products_run_in_the_dtype_that_is_claimed_and_an_arm_in_another_is_refused(pool, arm):
    claims = arm_specs()[arm].claims
    assert violated_claim(witness(decode(pool, arm).answer), claims=claims) is None
    other = "bf16" if claims["dtype"] != "bfloat16" else "fp32"
    violation = violated_claim(witness(decode(pool, other).answer), claims=claims)
    assert f"claims {claims['dtype']}" in violation


@pytest.mark.parametrize("arm", ["int8", "int4", "fp32-packed", "bf16-packed"])
def test_a_scale_that_is_off_is_a_wrong_answer(pool, arm, monkeypatch):
    chosen = {name: arm_specs()[name] for name in ("fp32", arm)}
    chosen["fp32" + TWIN_SUFFIX] = chosen["fp32"]

    def verdict():
        verify = work_kinds()["decode"].make_verifier(pool, "fp32", chosen, context=16)
        assert verify("fp32", decode(pool, "fp32")).verdict == "pass"
        return verify(arm, decode(pool, arm)).verdict

    assert verdict() == "pass"
    layer = FORMS[arm_specs()[arm].weights]
    forward = layer.forward
    monkeypatch.setattr(layer, "forward", lambda self, x: forward(self, x) * 1.1)
    assert verdict() == "fail"


def test_a_step_reads_the_bytes_of_its_weights(pool):
    share = {arm: decode(pool, arm).moved_bytes / decode(pool, "fp32").moved_bytes for arm in ("int8", "int4")}
    assert 0.15 < share["int4"] < share["int8"] < 0.3
    assert decode(pool, "fp32-packed").moved_bytes == decode(pool, "fp32").moved_bytes


# Generation, where the tokens need not be float64's.

GENERATION = {"prompt": 10, "new_tokens": 12}


def verdicts_on_generation(pool, arm, *, control="cached"):
    chosen = {name: arm_specs()[name] for name in (control, arm)}
    verify = work_kinds()["generate"].make_verifier(pool, control, chosen, **GENERATION)
    works = {name: work_kinds()["generate"].build(pool, spec, 0, **GENERATION) for name, spec in chosen.items()}
    return {name: verify(name, work) for name, work in works.items()}


@pytest.mark.parametrize("arm", ["int8", "int4"])
def test_generation_in_fewer_bits_is_compared_with_float64_in_as_few(pool, arm):
    found = verdicts_on_generation(pool, arm)
    assert {name: each.verdict for name, each in found.items()} == {"cached": "pass", arm: "pass"}
    assert found[arm].error > 100 * found["cached"].error
    assert found["cached"].message.startswith("float64's greedy tokens")


@pytest.mark.parametrize("arm", ["int8", "int4"])
def test_generation_with_a_scale_that_is_off_is_wrong(pool, arm, monkeypatch):
    forward = FORMS[arm].forward
    monkeypatch.setattr(FORMS[arm], "forward", lambda self, x: forward(self, x) * 1.1)
    assert "rounding allows" in verdicts_on_generation(pool, arm)[arm].message


def test_tokens_that_are_not_the_best_by_the_arms_own_logits_are_wrong(pool, monkeypatch):
    def second_best(model, ids, new_tokens, **options):
        for _ in range(new_tokens):
            ids = torch.cat([ids, model.module(ids)[0][:, -1].topk(2).indices[:, 1:]], dim=1)
        return ids

    monkeypatch.setattr(pool.subject, "generate", second_best, raising=False)
    spec = arm_specs()["int8"]
    verify = work_kinds()["generate"].make_verifier(pool, "int8", {"int8": spec}, **GENERATION)
    verify.positions = {"int8": sum(range(10, 22))}
    found = verify("int8", work_kinds()["generate"].build(pool, spec, 0, **GENERATION))
    assert (found.verdict, found.message) == ("fail", "a token is not the best one by the arm's own logits")


@pytest.mark.skipif(importlib.util.find_spec("ctranslate2") is None, reason="CTranslate2 is not installed")
def test_ctranslate2_in_int8_generates_what_int8_weights_and_activations_do(pool):
    assert verdicts_on_generation(pool, "ctranslate2-int8")["ctranslate2-int8"].verdict == "pass"
