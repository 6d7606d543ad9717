"""The time to a verdict: every check of the debug size on one subject, with the time of each suite."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from harness.faults.matrix import debug_checks
from harness.judging.run_check import run
from harness.pytest_plugin.runners import subject_of

SUITES = Path(__file__).parents[1] / "verifications"


@pytest.mark.benchmark(group="verdict: every check of the debug size")
def test_verdict_on_the_subject(benchmark: Any, pytestconfig: pytest.Config) -> None:
    """Time what a user waits for with `-m debug`, without pytest's own time."""
    if pytestconfig.getoption("--quick"):
        pytest.skip("left out by --quick: all checks take 17 s, twice")
    checks, subject = debug_checks(SUITES), subject_of(pytestconfig)
    shares: defaultdict[str, float] = defaultdict(float)

    def judge() -> None:
        shares.clear()
        for check in checks:
            shares[check.suite] += run(check, subject).seconds

    benchmark.pedantic(judge, rounds=2)
    benchmark.extra_info.update({suite: round(seconds, 3) for suite, seconds in shares.items()})
