"""Processes that are found again by a mark, whatever session they went to."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path

MARK = "GPT_HARNESS_PROCESS"
ROUNDS = 10  # of looking for processes: one may start another while it is looked for


def new_mark() -> str:
    """Return a mark that no other process has."""
    return secrets.token_hex(8)


def mark_this_process(mark: str) -> None:
    """Mark this process and those that come from it.

    Programs that it starts inherit an environment variable. Processes that it forks inherit an empty file in memory
    with that name: what /proc shows as their environment is that of the last program that was started.
    """
    os.environ[MARK] = mark
    if hasattr(os, "memfd_create"):
        os.memfd_create(f"{MARK}={mark}")


def kill_marked(mark: str) -> None:
    """Kill every process whose mark begins with this one, also one in a session of its own.

    It has no effect without a /proc. Not found is a program that was started with an environment without the mark, and
    a forked process that has closed all descriptors.
    """
    for _ in range(ROUNDS):
        found = [process for process in _processes() if _has(process, f"{MARK}={mark}")]
        found.sort(key=lambda process: process == os.getpid())  # this one last
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if not found:
            return


def _processes() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]
    return []


def _has(process: int, mark: str) -> bool:
    with contextlib.suppress(OSError):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if any(each.startswith(mark.encode()) for each in variables):
            return True
        return any(each.startswith(f"/memfd:{mark}") for each in _open_files(process))
    return False


def _open_files(process: int) -> list[str]:
    files = list[str]()
    for descriptor in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            files.append(os.readlink(f"/proc/{process}/fd/{descriptor}"))
    return files
