"""An interrupted benchmark run resumes, but only if nothing that times depend on has changed."""

import random

from harness.history.resume import covers, fingerprint, resumable
from harness.tests.history.benchmark_records import ARMS, comparison, record


def rows_of(points, mark="x"):
    return [comparison(random.Random(0), dict.fromkeys(ARMS, 1.0), point=p, fingerprint=mark, rounds=4) for p in points]


def test_the_next_run_resumes_with_the_comparisons_of_interrupted_ones(tmp_path):
    record(tmp_path, "20261120T000000Z", rows_of([128]), footer={"kind": "footer", "complete": True})
    record(tmp_path, "20261121T000000Z", rows_of([256, 512]), footer={"kind": "footer", "complete": False})
    torn = record(tmp_path, "20261122T000000Z", rows_of([512, 1024]), footer=None)
    torn.write_text(torn.read_text() + '{"kind": "comparison", "compar')
    record(tmp_path, "20261123T000000Z", rows_of([2048], mark="another"), footer={"kind": "footer", "complete": True})
    found = {row["point"]: row["resumed_from"] for row in resumable(tmp_path, "x")}
    assert found == {
        512: "bench-20261122T000000Z.jsonl", 1024: "bench-20261122T000000Z.jsonl", 256: "bench-20261121T000000Z.jsonl"
    }  # fmt: skip


def test_after_a_complete_run_everything_is_measured_again(tmp_path):
    record(tmp_path, "20261120T000000Z", rows_of([128]))
    record(tmp_path, "20261121T000000Z", rows_of([128]), footer={"kind": "footer", "complete": True})
    assert resumable(tmp_path, "x") == []


def test_a_row_covers_the_arms_that_it_has():
    row = rows_of([128])[0]
    assert covers(row, ["naive", "flash"])
    assert not covers(row, ["naive", "looped"])


def test_a_changed_character_of_the_subject_or_another_setting_gives_another_fingerprint(tmp_path):
    subject = tmp_path / "mine.py"
    subject.write_text("x = 1\n")
    of = {"environment": {"cpu": "one"}, "settings": {"size": "debug"}}
    first = fingerprint(f"{subject}:GPT", **of)
    assert first == fingerprint(f"{subject}:GPT", **of)
    subject.write_text("x = 2\n")
    second = fingerprint(f"{subject}:GPT", **of)
    (tmp_path / "layers").mkdir()
    for written in ("attention.py", "deep/norm.py"):  # the code of a GPT is often in a package beside its file
        (tmp_path / "layers" / written).parent.mkdir(exist_ok=True)
        (tmp_path / "layers" / written).write_text("y = 1\n")
        before = second
        second = fingerprint(f"{subject}:GPT", **of)
        assert second != before
    other = fingerprint(f"{subject}:GPT", environment={"cpu": "one"}, settings={"size": "124M"})
    assert len({first, second, other, fingerprint("gpt:GPT", **of)}) == 4
