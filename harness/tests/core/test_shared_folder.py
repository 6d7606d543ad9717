"""Processes share a folder, and none leaves it behind."""

import os
import signal
import tempfile

import pytest

from harness.core.forked import end_with_parent
from harness.core.shared_folder import SharedFolder


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


def other_process(name=""):
    """Fork a process that makes a folder, and waits; return it and the folder."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        end_with_parent()
        folder = SharedFolder(name)
        os.write(write, str(folder.path).encode())
        signal.pause()
    os.close(write)
    path = os.read(read, 1000).decode()
    os.close(read)
    return process, path


def end(process):
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_a_folder_goes_with_its_object():
    folder = SharedFolder()
    assert folder.path.is_dir()
    folder.remove()
    assert not folder.path.exists()


def test_the_folder_of_a_process_that_was_killed_is_removed_by_the_next():
    """Regression: after kill -9, 20 MB stayed in /tmp for each kind of ranks."""
    process, path = other_process()
    own = SharedFolder()
    assert os.path.isdir(path)
    end(process)
    assert os.path.isdir(path)
    other = SharedFolder()
    assert not os.path.exists(path)
    assert own.path.is_dir()
    assert other.path.is_dir()


def test_a_folder_that_another_process_uses_stays_until_that_ends():
    own = SharedFolder("same")
    process, path = other_process("same")
    assert path == str(own.path)
    own.remove()
    assert os.path.isdir(path)
    end(process)
    SharedFolder().remove()
    assert not os.path.exists(path)


def test_a_forked_process_does_not_remove_the_folder():
    own = SharedFolder()
    process = os.fork()
    if process == 0:
        own.remove()
        os._exit(0)
    os.waitpid(process, 0)
    assert own.path.is_dir()
