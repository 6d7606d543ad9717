"""The work of speculative decoding: drafts that agree as far as the weights are damped, and figures by closed form."""

import pytest
import torch

from harness.bench.arms import ModelPool, arm_specs, work_kinds, work_of
from harness.bench.arms.workloads.speculation import damped, draft_size, draft_state
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle.probe_weights import state
from harness.oracle.speculation import agreement, tokens_a_call
from harness.oracle.tokens import batch
from harness.subjects.adapters import adapt

DEBUG = SIZES["debug"]
POINT = {"lookahead": 3, "prompt": 8, "new_tokens": 16}


@pytest.fixture(scope="module")
def pool():
    return ModelPool(adapt("gpt:GPT"), DEBUG)


def test_at_a_damping_of_zero_the_first_layer_alone_gives_the_targets_logits():
    subject, published = adapt("gpt:GPT"), state("debug", "probe")
    ids, _ = batch(DEBUG, "random", rows=1, length=20)
    for damping, same in ((0, True), (100, False)):
        weights = damped(published, damping)
        target = subject.build(DEBUG).load(weights)
        draft = subject.build(draft_size(DEBUG)).load(draft_state(weights))
        with torch.no_grad():
            assert torch.allclose(target.logits(ids), draft.logits(ids), atol=1e-4) is same
        assert all(agreement(draft, ids, 4)) is False  # random tokens are nobody's likeliest


@pytest.mark.parametrize("arm", ["alone", "draft-model", "early-exit", "prompt-lookup"])
def test_each_arm_gives_the_targets_tokens_and_its_figures(pool, arm):
    chosen = {name: arm_specs()[name] for name in ("alone", arm)}
    verify = work_kinds()["speculate"].make_verifier(pool, "alone", chosen, damping=60, **POINT)
    assert verify("alone", work_of(pool, "speculate", "alone", damping=60, **POINT)).verdict == "pass"
    work = work_of(pool, "speculate", arm, damping=60, **POINT)
    assert verify(arm, work).verdict == "pass"
    extras = work.extras()
    if arm == "alone":
        assert extras == {}
    if arm in ("draft-model", "early-exit"):
        alpha = extras["acceptance_share"]
        assert extras["tokens_per_target_call_closed_form"] == tokens_a_call(alpha, 3)
        assert extras["speed_up_closed_form"] > 0 < extras["speed_up_with_verification"]
        assert 1 < extras["tokens_per_target_call"] <= 4
    if arm == "prompt-lookup":
        assert list(extras) == ["tokens_per_target_call"]


def test_with_a_draft_that_always_agrees_all_drafts_are_accepted(pool):
    extras = work_of(pool, "speculate", "draft-model", damping=0, **POINT).extras()
    assert extras["acceptance_share"] == 1.0
    assert extras["tokens_per_target_call"] == extras["tokens_per_target_call_closed_form"] == 4.0


def test_an_arm_with_another_text_is_not_timed(pool):
    """The draft's own text in the place of the target's is as fast as it is wrong."""
    chosen = {name: arm_specs()[name] for name in ("alone", "draft-model")}
    verify = work_kinds()["speculate"].make_verifier(pool, "alone", chosen, damping=60, **POINT)
    verify("alone", work_of(pool, "speculate", "alone", damping=60, **POINT))
    wrong = work_of(pool, "speculate", "draft-model", damping=0, **POINT)
    assert verify("draft-model", wrong).verdict == "fail"


def test_a_subject_without_speculation_has_no_such_arm(tmp_path):
    (tmp_path / "my_gpt.py").write_text("from harness.faults.specimen import GPT\n")
    pool = ModelPool(adapt(f"{tmp_path}/my_gpt.py:GPT"), DEBUG)
    with pytest.raises(MissingAbility, match="Speculates"):
        work_of(pool, "speculate", "draft-model", **POINT)
