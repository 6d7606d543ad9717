"""The work of one feed-forward layer: its costs are those that are counted, and each arm is verified."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from gpt.linear import Linear
from harness.bench.arms import ModelPool, arm_specs, work_kinds
from harness.bench.arms.all_arms import work_of
from harness.bench.arms.workloads import experts
from harness.bench.arms.workloads.cost_terms import dense_layer_cost, expert_layer_cost
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.subjects.adapters import adapt

ARMS = ("dense-active", "experts", "dense-total")
SMALL = SIZES["debug"]


@pytest.fixture
def pool():
    made = ModelPool(adapt("gpt:GPT"), SMALL)
    yield made
    made.close()


@pytest.mark.parametrize("arm", ARMS)
def test_the_flops_of_the_closed_form_are_those_that_torch_counts(pool, arm):
    extras = work_of(pool, "expert-layer", arm, tokens=32).extras()
    assert extras["counted_flops_per_token"] == extras["closed_form_flops_per_token"]


def test_dense_layers_have_as_many_weights_as_a_token_uses_and_as_there_are(pool):
    found = {arm: work_of(pool, "expert-layer", arm, tokens=4).extras() for arm in ARMS}
    router_and_biases = 8 * 48 + 8 * (4 * 48 + 48)
    assert found["experts"]["active_parameters"] - found["dense-active"]["active_parameters"] < router_and_biases
    assert found["experts"]["total_parameters"] - found["dense-total"]["total_parameters"] < router_and_biases
    assert found["experts"]["total_parameters"] > 3.9 * found["experts"]["active_parameters"]


def test_one_token_reads_k_experts_and_many_read_all():
    one = expert_layer_cost(SMALL, tokens=1, experts=8, per_token=2, hidden=192).moved_bytes
    many = expert_layer_cost(SMALL, tokens=1000, experts=8, per_token=2, hidden=192).moved_bytes
    vectors = 4 * 48 * 2
    dense = dense_layer_cost(SMALL, tokens=0, hidden=192).moved_bytes
    router = 4 * 8 * 48
    assert one == pytest.approx(2 * dense + router + vectors)
    assert many == pytest.approx(8 * dense + router + 1000 * vectors)


def verify(pool, arm, work):
    verifier = work_kinds()["expert-layer"].make_verifier(pool, "dense-active", dict(arm_specs()), tokens=16)
    return verifier(arm, work)


@pytest.mark.parametrize("arm", [*ARMS, "dense-active-again"])
def test_a_right_arm_is_verified(pool, arm):
    work = work_of(pool, "expert-layer", arm.removesuffix("-again"), tokens=16)
    assert verify(pool, arm, work).verdict == "pass"


@pytest.mark.parametrize("arm", ARMS)
def test_a_wrong_answer_is_refused(pool, arm):
    work = work_of(pool, "expert-layer", arm, tokens=16)
    right = work.answer()
    wrong = type(work)(call=work.call, answer=lambda: torch.roll(right, 1, dims=1), tokens=16)
    assert verify(pool, arm, wrong).verdict == "fail"


def test_a_subject_without_experts_is_skipped_by_name():
    with pytest.raises(MissingAbility, match="has no mixture of experts"):
        work_of(ModelPool(adapt("harness.faults.specimen:GPT"), SMALL), "expert-layer", "experts", tokens=4)


def test_dense_layers_are_made_of_the_experts_own_linear_layers(pool, monkeypatch):
    """With torch's own, one token was slower by a product that the experts do not use."""
    calls = []
    original = Linear._by_slices
    monkeypatch.setattr(Linear, "_by_slices", lambda *arguments: calls.append(1) or original(*arguments))
    work_of(pool, "expert-layer", "dense-active", tokens=1).call()
    assert calls


def test_a_class_of_linear_layers_that_takes_other_arguments_is_replaced_by_torchs(pool):
    class Other(nn.Linear):
        def __init__(self, config):
            super().__init__(config.width, config.width)

    numbers = replace(experts._numbers(pool, 8, 2), linear=Other)
    dense = experts._dense(SMALL, numbers, 8, "cpu")
    assert [type(part) for part in dense] == [nn.Linear, nn.GELU, nn.Linear]
