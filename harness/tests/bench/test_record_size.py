"""The size of a comparison's row in the record is bounded."""

import json
import random

from harness.bench.comparison import Arm, Comparison
from harness.bench.measurement import measure
from harness.bench.rounds import INTERVAL_CHECKS
from harness.bench.work import Verification, Work


def test_a_row_has_no_more_rounds_than_the_last_interval_check_however_long_it_may_take():
    """pytest-benchmark's file has one number a round: a million cheap calls must not become a million numbers."""
    rng, now = random.Random(0), [0.0]

    def call():
        now[0] += 1e-5 * rng.uniform(1, 5)

    def build():
        return Work(call=call, answer=lambda: None, tokens=1)

    noisy = Comparison(
        "c", "t", "m", "a", (Arm("a", build), Arm("b", build)), lambda name, work: Verification("pass", "")
    )
    measured = measure(noisy, seconds=1e9, clock=lambda: now[0])
    assert {len(times) for times in measured.seconds.values()} <= set(INTERVAL_CHECKS)
    assert INTERVAL_CHECKS[-1] <= 96
    assert len(json.dumps(measured.row())) < 20_000
