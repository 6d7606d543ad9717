"""Coverage: the lines of the specimen that each check runs, so that a fault is judged only by checks that run it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from harness.faults.catalogue import SPECIMEN
from harness.judging.run_check import run
from harness.oracle import model_cache
from harness.subjects.adapters import adapt
from harness.suites.check import Check


def lines_reached(checks: Sequence[Check]) -> dict[str, frozenset[int]]:
    """Return the lines of the correct specimen that each check runs, by `check_key`; under "", those its import runs.

    A fault in lines that a check does not run cannot change what the check finds. The cases of a check share what one
    of them has computed, so their lines are merged.
    """
    reached: dict[str, frozenset[int]] = {}
    with _traced_lines() as lines:
        subject = adapt(f"{SPECIMEN}:GPT")
        reached[""] = frozenset(lines)
        for check in checks:
            lines.clear()
            model_cache.clear()  # a check must run the lines of the models that it shares with others
            run(check, subject)
            reached[check_key(check)] = reached.get(check_key(check), frozenset()) | lines
    return reached


def check_key(check: Check) -> str:
    """Return the name of a check without its case: `suite::check`."""
    return f"{check.suite}::{check.name}"


@contextmanager
def _traced_lines() -> Iterator[set[int]]:
    """Collect the numbers of the specimen's lines that run inside the block."""
    lines: set[int] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != str(SPECIMEN):
            return None
        lines.add(frame.f_lineno)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)
