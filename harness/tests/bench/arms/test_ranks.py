"""The work of several ranks: their answer is one process's, and what they send is the closed form."""

import pytest

from harness.bench.arms.all_arms import arm_specs, work_of
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.workloads import ranks
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN
from harness.subjects.adapters import adapt

PARAMETERS = {"tokens": 12, "batch": 4}


@pytest.mark.parametrize("arm", ["ddp", "fsdp", "tp"])
def test_ranks_answer_as_one_process_does_also_after_they_were_timed(arm):
    pool = ModelPool(adapt("gpt:GPT"), SIZES["debug"])
    specs = {name: arm_specs()[name] for name in ("one-process", arm)}
    verify = ranks._make_verifier(pool, "one-process", specs, **PARAMETERS)
    assert verify("one-process", work_of(pool, "ranks-step", "one-process", **PARAMETERS)).verdict == "pass"
    work = work_of(pool, "ranks-step", arm, **PARAMETERS)
    assert verify(arm, work).verdict == "pass"
    work.call()
    work.call()
    assert verify(arm, work).verdict == "pass"
    found = work.extras()
    assert found["parameter_bytes"] == found["parameter_closed_form_bytes"]
    assert found["moment_bytes"] == 2 * found["gradient_bytes"] == 2 * found["parameter_bytes"]
    assert 0.8 < found["sent_by_ring_bytes"] / found["sent_closed_form_bytes"] < 1.01


def test_a_model_above_the_shallow_size_is_replaced_by_it():
    pool = ModelPool(adapt("gpt:GPT"), SIZES["124M"])
    assert ranks._small(pool).size == SIZES["124M-shallow"]
    small = ModelPool(adapt("gpt:GPT"), SIZES["debug"])
    assert ranks._small(small) is small


def test_a_subject_without_ranks_is_skipped_by_name():
    pool = ModelPool(adapt(f"{SPECIMEN}:GPT"), SIZES["debug"])
    with pytest.raises(MissingAbility, match="has no function for data ranks"):
        work_of(pool, "ranks-step", "ddp", **PARAMETERS)
