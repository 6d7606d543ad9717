"""After an index out of range in a kernel CUDA refuses every call of the process: the checks that follow say so."""

import pytest

from harness.core.limits import Limits
from harness.judging import run_check
from harness.judging.isolated import IsolatedJudge
from harness.judging.run_check import run
from harness.subjects.adapters import adapt

CHECK = "loss::loss-by-definition,case=plain"
# What CUDA says. There is none here, so the model says it.
MINE = """
import gpt

class Lost(gpt.GPT):
    def forward(self, ids, targets=None):
        raise RuntimeError("CUDA error: device-side assert triggered")
"""


@pytest.fixture
def lost(tmp_path, monkeypatch):
    monkeypatch.setattr(run_check, "_lost_in", [])
    (tmp_path / "mine.py").write_text(MINE)
    return f"{tmp_path / 'mine.py'}:Lost"


def test_the_checks_that_follow_are_errors_that_name_the_one_in_which_it_happened(shipped, lost):
    first = run(shipped[CHECK], adapt(lost))
    assert first.verdict == "error"
    assert "device-side assert" in first.message
    second = run(shipped["loss::loss-by-definition,case=training"], adapt("gpt:GPT"))
    assert second.verdict == "error"
    assert second.message.startswith("not run: CUDA refuses every call after the device-side assert in loss/loss-by-")
    assert "--isolate" in second.message


def test_an_isolated_subject_gets_a_new_process(shipped, lost):
    judge = IsolatedJudge(lost, limits=Limits())
    try:
        records = [judge.judge(shipped[CHECK], Limits()) for _ in range(2)]
    finally:
        judge.close()
    assert [record.message.startswith("not run") for record in records] == [False, False]
    assert all("device-side assert" in record.message for record in records)
