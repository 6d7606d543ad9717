"""The summary at the end of a run: causes before failures, each failure under its cause or listed."""

import pytest

from harness.pytest_plugin.terminal_summary import MESSAGE, WIDTH, summary

NAME = "my_gpt.py:GPT"


def row(suite, check, message="found one; expected two", **details):
    return {
        "kind": "record",
        "id": f"verifications/{suite}.toml::{check}",
        "suite": suite,
        "check": check,
        "subject": NAME,
        "verdict": "fail",
        "message": message,
        "seconds": 0.1,
        "rerun": "pytest",
        "details": details,
    }


def finding(fault, source, **more):
    return {"where": "h.0", "cause": "a cause", "fault": fault, "evidence": "", "source": source, "text": ""} | more


def text_of(rows, found=None):
    diagnoses = {} if found is None else {NAME: found}
    return [line.text for line in summary(rows, diagnoses, excepted={}, scripts={})]


ROWS = [row("arms", "agree"), row("parity", "debug"), row("structure", "count")]


def test_without_a_diagnosis_failures_are_listed_from_coarse_to_fine():
    lines = text_of(ROWS)
    start = lines.index("what fails") + 1
    assert [line.split("/")[0] for line in lines[start : start + 3]] == ["structure", "parity", "arms"]


def test_a_failure_that_the_causes_explain_is_not_listed_again():
    lines = text_of(
        ROWS,
        {"findings": [finding("relu", "a.py:1")], "explained": ["verifications/parity.toml::debug"], "explained_of": 3},
    )
    assert "   this explains 1 of the 3 failures that were judged again" in lines
    start = lines.index("what else fails")
    assert [line.split(":")[0] for line in lines[start + 1 : start + 3]] == ["structure/count", "arms/agree"]
    assert not [line for line in lines if line.startswith("parity/")]


def test_nothing_else_fails_if_the_causes_explain_all():
    ids = [each["id"] for each in ROWS]
    lines = text_of(ROWS, {"findings": [finding("relu", "a.py:1")], "explained": ids, "explained_of": 3})
    assert not {"what fails", "what else fails"} & set(lines)


def test_the_cause_that_explains_most_comes_first_and_is_where_to_look():
    first, second = finding("small", "a.py:1", explains=1), finding("large", "a.py:2", explains=2)
    lines = text_of(ROWS, {"findings": [first, second], "explained": [], "explained_of": 3})
    assert [line for line in lines if line[:2] in ("1.", "2.")] == ["1. h.0  a.py:2", "2. h.0  a.py:1"]
    assert "look at    a.py:2" in lines
    assert "   these explain 0 of the 3 failures that were judged again" in lines
    assert len([line for line in lines if line.startswith(("arms/", "parity/", "structure/"))]) == 3


@pytest.mark.parametrize("length", [1, 40, 400])
def test_a_message_is_wrapped_between_words_and_cut_after_some_lines(length):
    lines = text_of([row("parity", "debug", " ".join(f"word{n}" for n in range(length)))])
    start = lines.index("what fails") + 1
    shown = lines[start : lines.index("what to do")]
    assert len(shown) <= MESSAGE
    assert max(map(len, shown)) <= WIDTH
    words = " ".join(shown).split()
    assert words[1:] == [f"word{n}" for n in range(len(words) - 1)] or words[-1] == "..."


def test_options_that_no_check_passes_are_said_in_one_line():
    passed = {"verdict": "pass"}
    rows = [row("conditions", "a", **{"not judged": {}}) | passed,
            row("conditions", "b", **{"not judged": {"options": "forward(router)"}}) | passed]  # fmt: skip
    assert text_of(rows).count(f"no check passes these options of {NAME}: forward(router)") == 1
    assert not [line for line in text_of(rows[:1]) if "options" in line]


def test_what_a_check_that_passes_tells_is_said():
    costly = row("device", "tf32", says="with TF32 the errors are, in float32 floors: the logits 430x")
    assert f"{NAME}: with TF32 the errors are, in float32 floors: the logits 430x" in text_of(
        [costly | {"verdict": "pass"}]
    )
    assert not any("430x" in line for line in text_of([costly]))
