"""The verifiers of arms reject wrong answers, and accept the errors that rounding makes."""

import math

import pytest
import torch

from harness.bench.arms.error_bounds import float32_bound, relative_error
from harness.bench.arms.verifiers import Generated, GenerationVerifier, TensorVerifier
from harness.bench.work import Sample, Work
from harness.core.sizes import SIZES

DEBUG = SIZES["debug"]


def work(answer):
    return Work(call=lambda: None, answer=lambda: answer, tokens=1)


def verifier(expected, **options):
    return TensorVerifier(lambda: expected, control="control", bound=1e-5, **options)


def test_an_arm_as_near_to_float64_as_the_control_passes_and_a_farther_one_fails():
    expected = torch.randn(2, 8, 50, dtype=torch.float64)
    verify = verifier(expected)
    assert verify("control", work(expected * (1 + 1e-6))).verdict == "pass"
    assert verify("arm", work(expected * (1 - 3e-6))).verdict == "pass"
    wrong = verify("arm", work(expected * (1 + 8e-4)))
    assert wrong.verdict == "fail"
    assert wrong.error == pytest.approx(8e-4)
    assert "8.0e-04" in wrong.message


@pytest.mark.parametrize("answer", [torch.full((2, 8, 50), torch.nan), torch.zeros(2, 8, 49), torch.zeros(2, 8, 50)])
def test_nan_a_wrong_shape_and_zeros_are_not_accepted_as_answers(answer):
    verify = verifier(torch.randn(2, 8, 50, dtype=torch.float64))
    assert verify("control", work(answer)).verdict == "fail"


def test_a_control_that_is_farther_than_float32_allows_fails():
    expected = torch.randn(2, 8, 50, dtype=torch.float64)
    assert verifier(expected)("control", work(expected * (1 + 1e-3))).verdict == "fail"


def test_a_coarse_arm_is_compared_with_the_error_of_rounded_weights():
    expected = torch.randn(2, 8, 50, dtype=torch.float64)
    verify = verifier(expected, coarse=lambda dtype: expected * 1.005, dtypes={"bf16": torch.bfloat16})
    verify("control", work(expected))
    assert verify("bf16", work(expected * 1.01)).verdict == "pass"
    assert verify("bf16", work(expected * 1.03)).verdict == "fail"


def test_the_expected_answer_is_computed_once():
    calls = []

    def expected():
        calls.append("expected")
        return torch.ones(1, 1, 1, dtype=torch.float64)

    verify = TensorVerifier(expected, control="control", bound=1e-5)
    verify("control", work(torch.ones(1, 1, 1)))
    verify("arm", work(torch.ones(1, 1, 1)))
    assert calls == ["expected"]


def generated(ids, logits, positions):
    return work(Generated(torch.tensor([ids]), logits, positions))


def greedy_logits():
    """Float64 logits of 4 positions under which 4 and 5 are the best tokens after the third and fourth."""
    logits = torch.randn(1, 4, 50, dtype=torch.float64)
    logits[0, 2, 4] = logits[0, 3, 5] = 9.0
    return logits


def generation_verifier(logits):
    counts = {"uncached": 7, "cached": 4}
    return GenerationVerifier(
        lambda ids: logits, control="uncached", bound=1e-5, positions=counts, new_tokens=2,
        prompts=lambda number: torch.tensor([[1, 2, 3]]),
    )  # fmt: skip


def test_generation_is_verified_by_tokens_by_logits_and_by_the_counted_positions():
    logits = greedy_logits()  # 3 of the prompt, 2 new: the last 2 rows chose them
    near = logits[:, -2:] * (1 + 1e-6)
    verify = generation_verifier(logits)
    found = verify("uncached", generated([1, 2, 3, 4, 5], near, 7))
    assert found.verdict == "pass"
    assert found.witness == {"positions": 7, "positions_closed_form": 7}
    assert verify("cached", generated([1, 2, 3, 4, 5], near, 4)).verdict == "pass"
    assert "token 4 differs" in verify("cached", generated([1, 2, 3, 4, 6], near, 4)).message
    assert "does not do what its name says" in verify("cached", generated([1, 2, 3, 4, 5], near, 7)).message
    assert verify("cached", generated([1, 2, 3, 4, 5], near * 1.001, 4)).verdict == "fail", "right tokens by luck"


@pytest.mark.parametrize(
    ("ids", "verdict"),
    [
        ([1, 2, 3, 4, 5], "pass"),
        ([1, 2, 3, 4, 6], "fail"),  # another token
        ([1, 2, 9, 4, 5], "fail"),  # the answer to another prompt
        ([1, 2, 3, 4], "fail"),  # it stopped early
    ],
)
def test_the_tokens_of_a_timed_call_are_the_prompt_and_the_best_ones(ids, verdict):
    verify = generation_verifier(greedy_logits())
    found = verify.verify_sample("cached", work(None), Sample(3, torch.tensor([ids])))
    assert found.verdict == verdict


def test_a_control_that_does_not_choose_the_best_token_fails():
    """The second best of right logits: only the float64 logits show it."""
    logits = greedy_logits()
    found = generation_verifier(logits)("uncached", generated([1, 2, 3, 4, 6], logits[:, -2:], 7))
    assert found.verdict == "fail"
    assert "not the best one" in found.message


def test_a_generation_that_cannot_be_watched_says_so():
    verify = generation_verifier(greedy_logits())
    message = verify("uncached", generated([1, 2, 3, 4, 5], None, None)).message
    assert "could not be seen" in message
    assert "could not be counted" in message


def test_the_relative_error_is_a_root_mean_square_over_any_number_of_rows():
    right = torch.randn(3, 100, 7, dtype=torch.float64)
    noise = torch.randn_like(right)
    expected = float(0.01 * noise.norm() / right.norm())
    assert relative_error(right + 0.01 * noise, right) == pytest.approx(expected)


def test_float32s_bound_grows_with_the_depth():
    assert float32_bound(SIZES["124M"]) > float32_bound(DEBUG)
    assert math.isfinite(float32_bound(DEBUG))
