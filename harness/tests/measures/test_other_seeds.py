"""A right program passes with other weights, tokens and draws: no bound fits the seed of the suites alone.

`gpt-harness alarms` does this for many programs and many seeds.
"""

from harness.faults.catalogue import SPECIMEN
from harness.faults.false_alarms import checks_like, judged_again
from harness.faults.matrix import debug_checks
from harness.subjects.adapters import adapt

SUITES = ("behaviour", "interface", "options", "generation", "dropout", "conditions", "loss", "attention", "loading")


def test_a_right_program_is_flagged_with_no_seed(pytestconfig):
    checks = checks_like(debug_checks(pytestconfig.rootpath / "verifications"), [f"{suite}::*" for suite in SUITES])
    (row,) = judged_again([("the specimen", adapt(f"{SPECIMEN}:GPT"))], checks, first=1, repetitions=1)
    assert row["flagged"] == []
    assert row["verdicts"]["pass"] > 80
