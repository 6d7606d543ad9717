"""The record of a run: its header names the commit of the code that was judged."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.pytest_plugin.record_writer import code_folder


@pytest.mark.parametrize(
    ("options", "folder"),
    [
        ({}, "harness"),
        ({"--subject": ["models/my_gpt.py:GPT"]}, "models"),
        ({"--trainer": ["models/my_gpt.py"]}, "models"),
        ({"--subject": ["my_gpt:GPT"]}, "."),
        ({"--subject": ["my_gpt:GPT", "models/my_gpt.py:GPT"]}, "models"),
    ],
)
def test_the_commit_is_that_of_the_code_under_judgement(tmp_path, monkeypatch, options, folder):
    """It was the harness's own, on both sides of a comparison of two commits of a user's."""
    monkeypatch.chdir(tmp_path)
    Path("models").mkdir()
    Path("models/my_gpt.py").touch()
    config = SimpleNamespace(
        getoption={"--subject": None, "--trainer": None, **options}.__getitem__,
        rootpath=tmp_path / "harness",
        invocation_params=SimpleNamespace(dir=tmp_path),
    )
    assert (tmp_path / code_folder(config)).resolve() == (tmp_path / folder).resolve()
