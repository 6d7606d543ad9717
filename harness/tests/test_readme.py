"""What the README shows of a failing GPT is what a run prints."""

import re
import shutil
from pathlib import Path

from harness.diagnosis import diagnose
from harness.pytest_plugin.terminal_summary import diagnosis
from harness.subjects.adapters import adapt

README = Path(__file__).parents[2] / "README.md"


def test_the_diagnosis_in_the_readme_is_the_one_that_its_gpt_gets(tmp_path, monkeypatch):
    """The numbers may differ in their digits from machine to machine; the words and the line may not."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(Path(__file__).with_name("readme_gpt.py"), "my_gpt.py")
    printed = [line.text for line in diagnosis(diagnose(adapt("my_gpt.py:GPT")).as_row())]
    shown = re.search(r"=+ diagnosis =+\n(.*?)\n=+ what to do", README.read_text(encoding="utf-8"), re.S).group(1)
    lines = shown.splitlines()
    assert len(lines) > 2
    assert [_without_digits(line) for line in printed[: len(lines)]] == [_without_digits(line) for line in lines]


def _without_digits(line):
    return re.sub(r"\d(\.\d)?e-\d\d", "#", line)
