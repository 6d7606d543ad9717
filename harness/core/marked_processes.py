"""Processes that are found again by a mark in their environment, whatever session they went to."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
from pathlib import Path

MARK = "GPT_HARNESS_PROCESS"
ROUNDS = 10  # of looking for processes: one may start another while it is looked for


def new_mark() -> dict[str, str]:
    """Return an environment variable for a process, which all inherit that it starts."""
    return {MARK: secrets.token_hex(8)}


def kill_marked(mark: dict[str, str]) -> None:
    """Kill every process that has this mark, also one in a session of its own. It has no effect without a /proc.

    A process that was started with an environment without the mark is not found.
    """
    for _ in range(ROUNDS):
        found = [process for process in _processes() if _has(process, f"{MARK}={mark[MARK]}".encode())]
        for process in found:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process, signal.SIGKILL)
        if not found:
            return


def _processes() -> list[int]:
    with contextlib.suppress(OSError):
        return [int(each.name) for each in Path("/proc").iterdir() if each.name.isdecimal()]
    return []


def _has(process: int, variable: bytes) -> bool:
    with contextlib.suppress(OSError):
        return variable in Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
    return False
