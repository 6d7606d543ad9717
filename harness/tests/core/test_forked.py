"""A question that is asked in a forked process costs this one nothing."""

import os
import time

import pytest

from harness.core.forked import answer_of_fork


def test_the_answer_comes_back_whatever_its_length():
    assert answer_of_fork(lambda: "long" * 100_000, 30.0) == "long" * 100_000


@pytest.mark.parametrize("question", [lambda: os._exit(7), lambda: 1 / 0, lambda: time.sleep(60)])
def test_no_answer_is_an_empty_one(question, capfd):
    began = time.monotonic()
    assert answer_of_fork(question, 1.0) == ""
    assert time.monotonic() - began < 30
