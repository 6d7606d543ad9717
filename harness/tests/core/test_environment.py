"""The environment of a run: the commit is that of the code, with its changes."""

import subprocess

import pytest

from harness.core.environment import environment


@pytest.fixture
def repository(tmp_path):
    def git(*arguments):
        own = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(["git", "-C", str(tmp_path), *own, *arguments], check=True, capture_output=True)

    (tmp_path / "my_gpt.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", "my_gpt.py")
    git("commit", "-q", "-m", "one")
    return tmp_path


def change(folder):
    (folder / "my_gpt.py").write_text("x = 2\n")


def new_file(folder):
    (folder / "new.py").touch()


def new_package(folder):
    (folder / "models").mkdir()
    (folder / "models" / "my_gpt.py").touch()


def another_repository(folder):
    """As the harness that a workflow checks out beside the code; and a report."""
    subprocess.run(["git", "init", "-q", str(folder / ".harness")], check=True)
    (folder / ".harness" / "tool.py").touch()
    (folder / "index.html").touch()


@pytest.mark.parametrize(
    ("what", "dirty"), [(change, True), (new_file, True), (new_package, True), (another_repository, False)]
)
def test_a_commit_is_dirty_if_it_is_not_all_of_the_code(repository, what, dirty):
    assert environment(repository)["git_dirty"] is False
    what(repository)
    assert environment(repository)["git_dirty"] is dirty


def test_without_a_repository_nothing_is_known_of_changes(tmp_path):
    found = environment(tmp_path)
    assert (found["git_commit"], found["git_dirty"]) == (None, None)
