"""How a run of a training program ended, and what it printed last."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.error_text import describe_exit
from harness.training.child.request import Request
from harness.training.child_processes import Outcome
from harness.training.recording import Ended

LAST_LINES = 4  # of what a failed program printed, in the message


def how_it_ended(end: Mapping[str, Any], outcome: Outcome, request: Request) -> tuple[Ended, str]:
    """Return how a run ended, and why if it failed: from its "end" row, and from how its process ended."""
    if outcome.limit:
        return "failed", outcome.limit
    if end:
        return end["ended"], end["message"]
    if outcome.status == -signal.SIGKILL and request.kill_after is not None:
        return "killed", ""
    return "failed", describe_exit(outcome.status)


def last_lines(printed: Path) -> str:
    """Return the last lines that a program printed, for a message."""
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines() if printed.exists() else []
    last = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
    return f"; its last lines: {' | '.join(last)}" if last else ""
