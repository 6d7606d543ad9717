"""HTML pages of made-up records: of a wrong GPT with benchmarks and history, and of hostile records."""

from __future__ import annotations

import functools

from harness.report.history import Earlier
from harness.report.html.page import page
from harness.report.run_records import RunRecords
from harness.tests.report.claims.sample_claims import claim_rows
from harness.tests.report.sample_benchmark import bench_footer, bench_rows
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import verify_rows
from harness.tests.report.test_hostile_records import HOSTILE, hostile_runs

DIAGNOSIS = {
    "kind": "diagnosis",
    "subject": "gpt:GPT",
    "findings": [
        {
            "where": "h.*.mlp.activation", "fault": "gelu-erf-for-tanh", "cause": "the exact (erf) GELU",
            "evidence": "differs by 3.9e-04", "source": "my_gpt.py:40", "text": "self.act = nn.GELU()", "explains": 2,
            "excerpt": {"first": 39, "lines": ["def __init__(self):", "    self.act = nn.GELU()", "    # <b>"]},
        },
    ],
    "divergence": {
        place: {"own": gap, "alone": gap} for place, gap in (("embedding", 0.0), ("h.0.attn", 1e-16), ("h.0.mlp", 4e-4))
    },
    "explained": [],
}  # fmt: skip
DATES = ("2026-11-20T10:00:00Z", "2026-11-21T10:00:00Z")


@functools.cache
def wrong() -> str:
    """Return the page of a wrong GPT, with its benchmarks, claims and two earlier runs."""
    rows = bench_rows()
    verify = RunRecords.of(run("verify", [*verify_rows(wrong=True), *claim_rows(), DIAGNOSIS]))
    bench = RunRecords.of(run("bench", rows, ending=bench_footer(rows)))
    verified = tuple(RunRecords.of(run("verify", verify_rows(), started=date)) for date in DATES)
    timed = tuple(RunRecords.of(run("bench", bench_rows(), started=date)) for date in DATES)
    return page(verify, bench, claimed=verify, earlier=Earlier(verified, timed))


@functools.cache
def hostile() -> str:
    """Return the page of records in which every name and message is hostile."""
    verify, bench = hostile_runs()
    finding = dict.fromkeys(("where", "fault", "cause", "evidence", "source", "text"), HOSTILE)
    finding |= {"excerpt": {"first": 1, "lines": [HOSTILE, "</code></pre><script>alert(1)</script>"]}}
    divergence = {f"{HOSTILE} {number}": {"own": 0.5, "alone": 1e-3} for number in range(4)}
    diagnosis = {"kind": "diagnosis", "subject": HOSTILE, "findings": [finding], "divergence": divergence}
    claims = [{**row, "claim": {**row["claim"], "says": HOSTILE, "figure": HOSTILE}} for row in claim_rows()]
    verify = [*verify[:-1], *claims, diagnosis, {**verify[-1], "excepted": {HOSTILE: HOSTILE}}]
    runs = RunRecords.of(verify), RunRecords.of(bench)
    earlier = Earlier((RunRecords.of(hostile_runs()[0]),), (RunRecords.of(hostile_runs()[1]),))
    return page(*runs, claimed=runs[0], earlier=earlier, notes=[HOSTILE])
