"""The model pool: twins, rounded weights, and the arms that are not available."""

import pytest
import torch

from harness.bench.arms import ModelPool, arm_specs
from harness.bench.peers import HuggingFace
from harness.core.errors import MissingResource
from harness.core.sizes import SIZES
from harness.oracle.deviations import Deviation

DEBUG = SIZES["debug"]


@pytest.fixture(scope="module")
def pool():
    return ModelPool(HuggingFace("sdpa"), DEBUG)


def test_weights_rounded_to_bf16_are_values_that_bf16_can_represent(pool):
    model = pool.oracle(stored_in=torch.bfloat16)
    assert all(torch.equal(p, p.bfloat16().double()) for p in model.module.parameters())


def test_twins_are_separate_models_with_equal_weights(pool):
    one, two = (pool.model(arm_specs()["fp32"], copy) for copy in (0, 1))
    assert one is pool.model(arm_specs()["fp32"])
    assert one.module is not two.module
    ids, _ = pool.ids(rows=1, length=8)
    assert torch.equal(one.logits(ids), two.logits(ids))


def test_an_arm_of_another_device_is_missing_by_name(pool):
    with pytest.raises(MissingResource, match=r"fp16.*exists on cuda, and this is cpu"):
        pool.subject_for(arm_specs()["fp16"])


# With declared deviations.


def deviation(what):
    return Deviation(what=what, checks=(), reason="on purpose", file="mine.deviations.toml", line=1)


def test_a_peer_that_computes_plain_gpt2_is_left_out_by_name():
    pool = ModelPool(HuggingFace("sdpa"), DEBUG, deviations=[deviation("exact-gelu")])
    with pytest.raises(MissingResource, match=r"hf-sdpa .* computes GPT-2 without what is declared: exact GELU"):
        pool.subject_for(arm_specs()["hf-sdpa"])


def test_a_declaration_that_changes_no_model_leaves_the_peers_in():
    by_checks = Deviation(what="", checks=("training::*",), reason="r", file="mine.deviations.toml", line=1)
    assert ModelPool(HuggingFace("sdpa"), DEBUG, deviations=[by_checks]).subject_for(arm_specs()["hf-sdpa"])
