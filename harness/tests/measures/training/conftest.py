"""Fixtures of the measures of training: a check is run on recordings that are made by hand."""

import pytest

from harness.judging.run_check import run
from harness.tests.measures.training.hand_made import Program


@pytest.fixture
def judge(shipped):
    """Return a function that runs a shipped check on recordings, given by rehearsal, and returns the record."""

    def judged(check, **recordings):
        return run(shipped[check], Program(**recordings))

    return judged
