"""A survey lists the GPTs of a folder, judges each as its author would, and compares it with the truth."""

import time

import pytest

from harness.cli import main
from harness.core.errors import HarnessError, SubjectError
from harness.core.record_files import read
from harness.judging.survey import Surveyed, _running, surveyed
from harness.report import survey as report
from harness.subjects.adapters import adapt
from harness.subjects.adapters.likely_models import likely_models
from harness.tests.lessons.signals import signal_when

FILE = '''"""RIGHT. A file of parts."""
import torch.nn as nn
import lightning


class Norm(nn.Module):
    pass


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = Norm()


class Base(nn.Module):
    pass


class MyGPT(Base):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList([Block()])
        raise ValueError("no weights at hand")


class LitTrainer(lightning.LightningModule):
    def __init__(self):
        self.rate = 1e-3


class Config:
    width = 8
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "model.py").write_text(FILE)
    (tmp_path / "helpers.py").write_text("def add(a, b):\n    return a + b\n")
    (tmp_path / "broken.py").write_text("class GPT(:\n")
    return tmp_path


def test_the_whole_model_is_taken_and_not_its_parts_its_base_or_its_trainer(folder):
    assert likely_models(folder / "inner" / "model.py")[0] == "MyGPT"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("class Mine:\n    name = 'mine'\n    def build(self, size): ...\nclass GPT(Module): ...", "Mine"),
        ("def gpt(params, ids):\n    return ids", "gpt"),
        ("class Head(nn.Module): ...\nclass Net(nn.Module): ...", "Net"),
    ],
)  # fmt: skip
def test_an_adapter_a_function_and_a_plain_name_are_found(tmp_path, text, name):
    path = tmp_path / "one.py"
    path.write_text(text)
    assert likely_models(path)[0] == name


def test_a_file_without_a_name_is_an_error_that_suggests_the_whole_model(folder, monkeypatch):
    monkeypatch.chdir(folder)
    with pytest.raises(SubjectError, match=r"'inner/model.py' names no attribute; .*: inner/model.py:MyGPT\?$"):
        adapt("inner/model.py")
    with pytest.raises(SubjectError, match=r"names no attribute; expected FILE.py:NAME or package.module:NAME$"):
        adapt("helpers.py")


def test_without_a_file_of_truths_each_file_with_a_model_is_surveyed_and_its_docstring_is_the_truth(folder):
    assert surveyed(folder) == [Surveyed("inner/model.py:MyGPT", "RIGHT. A file of parts.")]


def test_a_file_of_truths_says_what_is_judged(folder):
    (folder / "survey.toml").write_text(
        '[[subject]]\nspec = "inner/model.py:Block"\ntruth = "ReLU"\ndeviations = ["relu"]\nfair = false\n'
    )
    assert surveyed(folder) == [Surveyed("inner/model.py:Block", "ReLU", ("relu",), fair=False)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"survey.toml:1: expected \[\[subject\]\]"),
        ("[[subject]\n", "survey.toml:1: not TOML"),
        ('[[subject]]\nspec = "a.py"\n', r"number 1: spec: expected 'FILE.py:NAME', found 'a.py'"),
        ('[[subject]]\nspec = "a.py:G"\ntruht = ""\n', "unknown key 'truht'; did you mean 'truth'"),
        ('[[subject]]\nspec = "a.py:G"\ndeviations = "relu"\n', "deviations: expected a list of ids, found 'relu'"),
    ],
)
def test_a_mistake_in_the_file_of_truths_is_an_error_with_its_place(folder, text, message):
    (folder / "survey.toml").write_text(text)
    with pytest.raises(HarnessError, match=message):
        surveyed(folder)


def test_a_folder_without_a_model_is_an_error(tmp_path):
    with pytest.raises(HarnessError, match="no Python file has a class that looks like a model"):
        surveyed(tmp_path)


def test_ctrl_c_ends_the_run_that_is_under_way(folder, tmp_path, capsys):
    """It once waited for it, and for all that were to come."""
    (folder / "second.py").write_text(FILE)
    signal_when(lambda: bool(_running))
    began = time.monotonic()
    assert main(["survey", str(folder), "--output", str(tmp_path / "out")]) == 130
    assert time.monotonic() - began < 10
    assert "interrupted: what was judged is in" in capsys.readouterr().err


def row(**changed):
    found = [{"fault": "relu", "where": "h.0.mlp", "cause": "ReLU", "evidence": "", "source": "a.py:1"}]
    return {
        "kind": "surveyed",
        "spec": "a.py:GPT",
        "truth": "ReLU | one",
        "fair": True,
        "expected": ["relu"],
        "read": True,
        "status": 1,
        "verdicts": {"fail": 3},
        "findings": found,
        "message": "",
        "seconds": 30.0,
        **changed,
    }


def test_what_is_missed_and_what_is_not_true_are_shortfalls_and_counted(tmp_path):
    right = row(expected=[], findings=[], verdicts={"pass": 9})
    rows = [
        *(row(), right, row(expected=None), row(read=False, fair=False, findings=[])),  # nothing is wrong with these
        row(expected=["relu", "untied-head"]),
        row(expected=[]),
        row(expected=[], findings=[]),
        row(read=False, findings=[], verdicts={}, message="no\nERROR: cannot be built"),
    ]
    assert report.shortfalls(rows) == rows[4:]
    assert list(report.summary(rows)) == [
        "read      6 of 7 fair ones; 1 more were tried",
        "found     2 of 3 deviations",
        "not true  1 reported; 2 right ones with a failing check",
        "compare   1 with their truth by eye: no ids are stated",
        "time      30 s for the median one, 30 s for the slowest",
    ]
    assert "ReLU &#124; one" in report.page(rows)
    assert "  because  ERROR: cannot be built" in report.lines(rows[-1])
    assert "  missed   untied-head" in report.lines(rows[4])
    assert "  not true relu" in report.lines(rows[5])
    assert all(path.is_file() for path in report.write(tmp_path, rows))


def test_a_survey_of_a_gpt_that_cannot_be_read_says_so_and_is_not_green(folder, tmp_path, capsys):
    output = tmp_path / "out"
    assert main(["survey", str(folder), "--output", str(output)]) == 1
    printed = capsys.readouterr().out
    assert "inner/model.py:MyGPT  NOT READ  nothing judged" in printed
    assert "  because  ValueError: no weights at hand" in printed
    assert "read      0 of 1 fair ones" in printed
    (records,) = (output / "records").glob("survey-*.jsonl")
    assert [each["kind"] for each in read(records)] == ["header", "surveyed", "footer"]
    assert "no weights at hand" in read(records)[1]["message"]
