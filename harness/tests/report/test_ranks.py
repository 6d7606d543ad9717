"""The plot of what ranks cost is made of records alone."""

from harness.report.run_records import RunRecords
from harness.report.verifications import ranks

TRAFFIC = [{"ring": 800.0, "wire": 820.0}, {"ring": 800.0, "wire": 810.0}]
MEMORY = [{"parameters": 100, "gradients": 100, "optimizer": 200}]


def run(*checks):
    return RunRecords.of([{"kind": "header", "subject": "mine.py:GPT"}, *checks])


def check(measure, kind, **details):
    return {"kind": "record", "suite": "parallel", "check": "c", "id": f"{measure}{kind}", "measure": measure,
            "parameters": {"kind": kind}, "details": details, "verdict": "pass"}  # fmt: skip


def test_a_run_without_ranks_has_no_section_and_no_plot():
    assert ranks.plot(run()) is None
    assert list(ranks.section(run(), [])) == []


def test_measured_bytes_stand_beside_the_closed_form_and_one_process():
    measured = run(
        check("bytes_sent", "data", **{"traffic": TRAFFIC, "predicted bytes": 800.0}),
        check("memory_of_a_rank", "data", **{"memory": MEMORY, "predicted bytes": 100}),
        check("memory_of_a_rank", "sharded", **{"memory": [{"parameters": 50}], "predicted bytes": 50}),
    )
    one, data, sharded = ranks.costs_of(measured)
    assert (one.kind, one.wire, one.predicted) == ("one process", 0.0, 400)
    assert (data.ring, data.wire, data.sent) == (800.0, 820.0, 800.0)
    assert sharded.stored == {"parameters": 50.0}
    assert ranks.plot(measured).headline.startswith("A data parallel rank sends 1.025 times the closed form")
    assert any("820 B" in line for line in ranks.section(measured, []))
