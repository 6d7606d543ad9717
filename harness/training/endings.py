"""How a run of a training program ended, and what it printed last."""

from __future__ import annotations

import re
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.core.error_text import describe_exit
from harness.training.child.request import PRINTED, Request
from harness.training.child_processes import Outcome
from harness.training.recording import Ended

LAST_LINES = 4  # of what a failed program printed, in the message


def how_it_ended(end: Mapping[str, Any], outcome: Outcome, request: Request) -> tuple[Ended, str]:
    """Return how a run ended, and why if it failed, with the last lines that it printed.

    It is known from its "end" row, and from how its process ended.
    """
    ended: Ended
    if outcome.limit:
        ended, message = "failed", outcome.limit
    elif end:
        ended, message = end["ended"], end["message"]
    elif outcome.status == -signal.SIGKILL and request.kill_after is not None:
        ended, message = "killed", ""
    else:
        ended, message = "failed", describe_exit(outcome.status)
    return ended, message + (_last_lines(Path(request.folder) / PRINTED) if ended == "failed" else "")


def _last_lines(printed: Path) -> str:
    """Return the last lines that a program printed, for a message."""
    lines = printed.read_text(encoding="utf-8", errors="replace").splitlines() if printed.exists() else []
    last = [line.strip() for line in lines if line.strip()][-LAST_LINES:]
    return LAST_LINES_BEGIN + " | ".join(last) if last else ""


# What ended a failed program -> what to give it. The first that matches counts. What it printed is no reason, but for a
# parser's message, which is printed only.
ADVICE = (
    (r"following arguments are required: (?P<what>[^|;]+)", 'give them: --trainer "{name} {what} ..."'),
    (r"Missing (option|argument) '(?P<what>[^']+)'", 'give it: --trainer "{name} {what} ..."'),
)
ADVICE_BY_ERROR = (
    (r"EOFError: EOF when reading", "it asks a question, and nobody answers here: give the answer as an argument"),
    (r"No module named '(?P<what>[^']+)'", "install {what} where pytest runs"),
    (r"\bapi_key\b|HF_TOKEN|gated repo|\blog ?in\b", "it wants an account: WANDB_MODE=disabled, or a local file"),
    (r"URLError|Name or service not known|ConnectionError|MaxRetryError|Temporary failure in name",
     "it wants a network: put the file where it looks first, or name one by its arguments"),
    (r"\$DISPLAY|could not connect to display|no display", "it opens a window: MPLBACKEND=Agg, or leave that out"),
    (r"not compiled with CUDA|NVIDIA driver|No CUDA GPUs|CUDA is not|no GPU",
     "it wants a GPU: --set device=cpu if it has such a setting, or an argument"),
    (r"^FileNotFoundError", "make that file first, as the program's own instructions say, or name another one"),
    (r"^did not end within", "it is too slow, or waits: make it smaller by its arguments or --set NAME=VALUE"),
    (r"GiB (of memory|to files)$", "make it smaller by its arguments or --set NAME=VALUE"),
)  # fmt: skip
LAST_LINES_BEGIN = "; its last lines: "


def what_to_give(name: str, message: str) -> str:
    """Return what a program that failed needs of its user, as "; ..."; "" if its message does not say."""
    error = message.partition(LAST_LINES_BEGIN)[0]
    for text, table in ((message, ADVICE), (error, ADVICE_BY_ERROR)):
        for pattern, advice in table:
            if match := re.search(pattern, text):
                given = {key: value.strip() for key, value in match.groupdict().items() if value}
                return f"; {advice.format(name=name, **given)}"
    return ""
