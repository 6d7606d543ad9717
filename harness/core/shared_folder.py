"""A temporary folder that several processes share, and that no process leaves behind, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import tempfile
import weakref
from pathlib import Path

PREFIX = "gpt-harness-rank-files-"


class SharedFolder:
    """A temporary folder, removed with this object, or at the end of the process.

    A process that is killed removes nothing. So each user has a lock on the folder, which the kernel releases when the
    process and those forked from it have ended. Folders without a lock are removed when a folder is made or removed.

    Args:
        name: the same for all processes that share the folder; without it, the folder is a new one.
    """

    def __init__(self, name: str = "") -> None:
        remove_abandoned()
        self.path = Path(tempfile.gettempdir(), f"{PREFIX}{name or secrets.token_hex(12)}")
        self.remove = weakref.finalize(self, _remove, self.path, _locked(self.path), os.getpid())


def remove_abandoned() -> None:
    """Remove the folders of processes that have ended."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # it is gone, or another user's
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                _remove_unused(path, descriptor)
            finally:
                os.close(descriptor)


def _locked(path: Path) -> int:
    """Make the folder if it is not there, and return a descriptor with a lock on it."""
    while True:
        path.mkdir(mode=0o700, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            # Another process may have removed it before it was locked.
            if path.exists() and os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
            os.close(descriptor)


def _remove_unused(path: Path, descriptor: int) -> None:
    """Remove the folder unless another process has a lock on it, which raises BlockingIOError."""
    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path, descriptor: int, owner: int) -> None:
    if os.getpid() != owner:  # in a process forked from it
        return
    with contextlib.suppress(OSError):
        _remove_unused(path, descriptor)
    os.close(descriptor)
    remove_abandoned()
