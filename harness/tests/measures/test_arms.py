"""The measure arm_error: the error of an arm over what rounding allows, for right and wrong GPTs."""

import math

from harness.bench.peers import HuggingFace
from harness.measures.arms import arm_error
from harness.tests.bench.arms.wrong_gpts import exact_gelu, wrong


def error_of(subject, **parameters):
    return arm_error(subject, size="debug", **parameters).value


def test_the_error_of_a_right_arm_is_within_what_rounding_allows():
    found = error_of(HuggingFace("sdpa"), work="forward", control="fp32", arm="bf16")
    assert 0 < found["fp32"] <= 1
    assert 0 < found["bf16"] <= 1


def test_the_error_of_a_wrong_gelu_is_beyond_what_rounding_allows():
    found = error_of(wrong(exact_gelu).subject, work="forward", control="fp32", arm="bf16")
    assert found["fp32"] > 10, found


def test_a_cache_that_is_not_used_is_all_wrong():
    class Uncached(HuggingFace):
        def generate(self, *args, use_cache, **options):
            return super().generate(*args, use_cache=False, **options)

    found = error_of(Uncached("sdpa"), work="generate", control="uncached", arm="cached")
    assert found["cached"] == math.inf
    assert found["uncached"] <= 1
