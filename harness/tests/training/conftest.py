"""Training programs of tests, each in a folder of its own."""

import pytest

from harness.faults.training import SCRIPT
from harness.training.program import TrainingProgram


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Return a function that makes a program of a script's text, in its own folder."""
    monkeypatch.chdir(tmp_path)
    made = []

    def of(text, arguments="", **options):
        (tmp_path / "train.py").write_text(text)
        made.append(TrainingProgram(f"train.py {arguments}", **options))
        return made[-1]

    yield of
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def specimen():
    """Return the specimen, whose rehearsals are shared by the tests."""
    program = TrainingProgram(str(SCRIPT))
    yield program
    program.close()
