"""The work of serving: both arms get float64's tokens in the steps of their closed forms; a wrong engine fails."""

import pytest

from harness.bench.arms.all_arms import work_kinds, work_of
from harness.bench.arms.model_pool import ModelPool
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN, read_catalogue
from harness.subjects.adapters import adapt

SIZES_OF_WORK = {"requests": 6, "slots": 2}


def verified(subject, arm, **parameters):
    pool = ModelPool(subject, SIZES["debug"])
    work = work_of(pool, "serve", arm, **SIZES_OF_WORK, **parameters)
    verify = work_kinds()["serve"].make_verifier(pool, arm, {}, **SIZES_OF_WORK, **parameters)
    return verify(arm, work), work


def test_both_arms_are_verified_and_take_the_steps_of_their_closed_forms():
    static, _ = verified(adapt("gpt:GPT"), "static")
    continuous, work = verified(adapt("gpt:GPT"), "continuous")
    assert (static.verdict, continuous.verdict) == ("pass", "pass")
    counted = [message.message.split("; ", 1)[1].split(" ") for message in (continuous, static)]
    assert counted[0][0] == counted[0][2]  # `N steps; N by closed form if continuous, M if static`
    assert counted[1][0] == counted[1][8]
    work.call()
    assert work.extras()["occupancy_share"] == work.extras()["ideal_occupancy_share"]


def test_a_witness_sees_two_tokens_of_two_requests():
    _, work = verified(adapt("gpt:GPT"), "continuous")
    assert [len(tokens) for tokens in work.witness_call().tokens] == [2, 1]  # the plan's second asks for one


@pytest.mark.parametrize(
    ("fault", "said"),
    [("batching-prompt-end-twice", "not the likeliest"), ("batching-one-token-too-few", "and asked for")],
)
def test_an_engine_with_other_tokens_fails_its_verification(tmp_path, fault, said):
    (chosen,) = read_catalogue().chosen([fault])
    file = tmp_path / "my_gpt.py"
    file.write_text(chosen.source_text())
    verdict, _ = verified(adapt(f"{file}:GPT"), "continuous")
    assert verdict.verdict == "fail"
    assert said in verdict.message


def test_a_subject_without_an_engine_is_missing_an_ability():
    with pytest.raises(MissingAbility, match="Serves"):
        verified(adapt(f"{SPECIMEN}:GPT"), "continuous")
