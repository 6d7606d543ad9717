"""A subject whose module, exceptions or names are meant to confuse whoever reads them."""

import pytest

from harness.core.error_text import describe_error
from harness.core.errors import HarnessError
from harness.pytest_plugin.failure_text import FailureText
from harness.pytest_plugin.terminal_summary import SummaryLine

HEAD = "import sys\nfrom gpt import GPT as Reference\n"
STEERING = "\x1b[31mred \x1b]0;title\x07 \u202egnp.exe\u202c \x00\x9b"


@pytest.mark.parametrize("line", ["raise RuntimeError(name)", "sys.exit(0)", "while True: pass"])
def test_a_module_that_fails_for_names_that_it_does_not_have_is_judged(project, line):
    project.makepyfile(mine=f"{HEAD}class GPT(Reference): ...\ndef __getattr__(name):\n    {line}\n")
    result = project.runpytest("--subject", "mine.py:GPT", "--time-limit", "20", "-k", "counted or logits")
    result.assert_outcomes(passed=2)


@pytest.mark.parametrize("line", ["raise RuntimeError(name)", "sys.exit(0)"])
def test_a_module_that_fails_for_the_name_that_is_judged_is_one_line_and_exit_4(project, line):
    project.makepyfile(mine=f"{HEAD}def __getattr__(name):\n    {line}\n")
    result = project.runpytest("--subject", "mine.py:GPT")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --subject mine.py:GPT: *: * at mine.py:4 in __getattr__"])


def steering(text):
    return [char for char in text if not char.isprintable() and char not in "\n\t"]


@pytest.mark.parametrize(
    "raised",
    [f"ValueError({STEERING!r})", f"type('E{STEERING[:6]}', (Exception,), {{}})('no')"],
    ids=["message", "type"],
)
@pytest.mark.parametrize("where", ["import", "forward"])
def test_no_character_of_an_exception_steers_the_terminal(project, raised, where):
    """Colours, the title of the window, and text that runs from right to left reached it as they were."""
    body = (
        f"raise {raised}" if where == "import" else f"class GPT(Reference):\n    def forward(self, *_): raise {raised}"
    )
    project.makepyfile(mine=f"{HEAD}{body}\n")
    result = project.runpytest("--subject", "mine.py:GPT")
    text = result.stdout.str() + result.stderr.str()
    assert not steering(text)
    assert r"\x1b[31m" in text


def test_what_the_summary_quotes_of_a_subject_does_not_steer_the_terminal(project, monkeypatch):
    """Its parameters' names and its lines, which are in no exception's message."""
    monkeypatch.setattr(
        "harness.pytest_plugin.session.terminal_summary.summary",
        lambda *_, **__: [SummaryLine(STEERING, "section"), SummaryLine(STEERING, "red")],
    )
    assert not steering(project.runpytest("-k", "counted").stdout.str())
    assert not steering(str(FailureText(STEERING, STEERING)) + FailureText("", STEERING).reprcrash.message)
    assert not steering(str(HarnessError(STEERING)) + describe_error(type(STEERING[:5], (Exception,), {})(STEERING)))
