"""In GitHub Actions a run annotates what is wrong and writes a summary; elsewhere it does neither."""

import pytest

from harness.core.github_actions import command
from harness.pytest_plugin.annotations import MOST, error_lines, usage_error_line
from harness.pytest_plugin.excerpts import excerpt, with_excerpts


@pytest.fixture
def step(monkeypatch, tmp_path):
    """A step of a workflow, and the file of its summary."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    return tmp_path / "summary.md"


def test_a_run_in_a_step_annotates_and_summarises(project, step):
    result = project.runpytest()
    result.stdout.fnmatch_lines(["::error title=*small.toml%3A%3Awrong::found 96,576 parameters; *run again: pytest *"])
    text = step.read_text(encoding="utf-8")
    assert "**1 of 2 checks fails." in text
    assert "| `small/wrong` | 96,576 parameters | 96,577 | `pytest verifications/small.toml::wrong` |" in text


def test_a_run_elsewhere_prints_no_annotations(project, monkeypatch):
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    result = project.runpytest()
    result.stdout.no_fnmatch_line("*::error*")


def test_a_summary_that_cannot_be_written_costs_one_line_and_no_verdict(project, step, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(step.parent / "no" / "such" / "folder"))
    result = project.runpytest()
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    assert (project.path / "reports" / "index.html").exists()
    result.stdout.fnmatch_lines(["the summary of the step was not written: *"])
    result.stdout.no_fnmatch_line("the report was not written*")


def test_a_subject_that_cannot_be_built_is_annotated_at_its_line(project, step):
    (project.path / "mine.py").write_text(
        "class GPT:\n    def __init__(self):\n        raise ValueError('no <size>')\n"
    )
    result = project.runpytest("--subject", "mine.py:GPT")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stdout.fnmatch_lines(["::error file=mine.py,line=3,title=gpt-harness%3A nothing was judged::*no <size>*"])
    text = step.read_text(encoding="utf-8")
    assert text.startswith("## Nothing was judged")
    assert "&lt;size" in text


def test_a_training_program_is_annotated_at_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    lines = error_lines([row("a", subject="train.py")], {})
    assert lines == ["::error file=train.py,line=1,title=a::m; run again: pytest x"]


def test_a_usage_error_without_a_file_has_no_place():
    assert "file=" not in usage_error_line(f"{'a' * 5000}.py:1: File name too long")
    assert usage_error_line("--subject x:1: no") == "::error title=gpt-harness%3A nothing was judged::--subject x:1: no"


def test_a_command_escapes_what_would_end_it():
    """The escapes of actions/toolkit, command.ts."""
    line = command("100% wrong\r\n::error::mine", file="a,b:c.py", line="3", title="x\ny")
    assert line == "::error file=a%2Cb%3Ac.py,line=3,title=x%0Ay::100%25 wrong%0D%0A::error::mine"


def test_a_file_is_named_from_the_root_of_the_repository(tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path))
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    assert command("wrong", file="my_gpt.py", line="3") == "::error file=models/my_gpt.py,line=3::wrong"


def row(name, **more):
    fields = {"verdict": "fail", "subject": "my_gpt.py:GPT", "message": "m", "rerun": "pytest x", "details": {}}
    return {**fields, "id": name, **more}


def test_findings_are_at_their_lines_and_what_they_explain_is_not_repeated():
    finding = {
        "where": "h.*",
        "fault": "post-norm",
        "cause": "norms after",
        "evidence": "seen",
        "source": "my_gpt.py:40",
    }
    diagnosis = {"findings": [finding, {**finding, "declared": True, "fault": "meant"}], "explained": ["a"]}
    checks = [row("a"), row("b"), row("c", declared=True), row("d", verdict="pass")]
    assert error_lines(checks, {"my_gpt.py:GPT": diagnosis}) == [
        "::error file=my_gpt.py,line=40,title=post-norm::norms after; seen",
        "::error title=what else fails::m; run again: pytest x",
    ]


def test_errors_at_one_line_are_one_annotation_and_none_where_a_finding_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_gpt.py").touch()
    place = [{"raised": {"type": "E", "place": f"my_gpt.py:{line} in forward"}} for line in (33, 40)]
    checks = [
        *(row(f"x{n}", verdict="error", details=place[0]) for n in range(3)),
        row("y", verdict="error", details=place[1]),
        row("z", verdict="error", details={"raised": {"type": "E", "place": ""}}),
    ]
    finding = {"where": "h.*", "fault": "", "cause": "c", "evidence": "e", "source": "my_gpt.py:40"}
    assert error_lines(checks, {"my_gpt.py:GPT": {"findings": [finding]}}) == [
        "::error file=my_gpt.py,line=40,title=h.*::c; e",
        "::error file=my_gpt.py,line=33,title=x0::m; run again: pytest x; 2 more checks fail so",
        "::error title=what else fails::m; run again: pytest x",
    ]
    assert error_lines([row("a")], {}) == ["::error file=my_gpt.py,line=1,title=a::m; run again: pytest x"]


def test_no_more_annotations_than_github_shows():
    assert len(error_lines([row(str(number)) for number in range(99)], {})) == MOST


def test_an_excerpt_has_the_lines_around_without_their_common_indentation(tmp_path):
    path = tmp_path / "a:b.py"
    path.write_text("class A:\n" + "\n".join(f"    line {number}" for number in range(2, 12)) + "\n")
    found = excerpt(f"{path}:6")["excerpt"]
    assert found["first"] == 3
    assert found["lines"] == [f"line {number}" for number in range(3, 10)]
    assert excerpt(f"{path}:1")["excerpt"]["first"] == 1
    for source in ("", "nowhere.py:3", f"{path}:99", f"{path}:x", str(path), str(tmp_path)):
        assert excerpt(source) == {}
    assert with_excerpts({"trouble": "no"}) == {"trouble": "no", "findings": []}
