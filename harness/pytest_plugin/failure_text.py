"""The text of a failed check in the terminal."""

from __future__ import annotations

import textwrap
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from harness.core.printable import printable

if TYPE_CHECKING:
    from harness.suites.record import Record

WIDTH = 110  # characters of a line


def format_failure(record: Record, place: str, rerun: str) -> str:
    """Return a failure in full: found, expected, where, parameters, why, source, and how to run it again.

    pytest's short summary shows the first line.
    """
    if record.details.get("because"):  # format_failure in full where it came up first
        return textwrap.fill(record.message, width=WIDTH, break_long_words=False)
    check, lines = record.check, {}
    if record.where:
        lines["where"] = (
            f"first at {record.where[0]}"
            + (f"; also {', '.join(record.where[1:6])}" if record.where[1:] else "")
            + (" ..." if record.where[6:] else "")
        )
    if hint := record.details.get("hint"):
        lines["hint"] = str(hint)
    if changed := record.details.get("changed"):
        lines["changed"] = "; ".join(f"{name}: {how}" for name, how in changed.items()) + " (put back)"
    if output := record.details.get("output"):
        lines["printed"] = f"{output['bytes']:,} bytes, beginning {' '.join(output['begins'].split())[:60]!r}"
    lines |= {
        "subject": record.subject,
        "with": " ".join(f"{key}={value}" for key, value in check.parameters.items()),
        "why": check.why,
        "source": check.source,
        "check": place,
        "again": rerun,
    }
    format_failure = [
        textwrap.fill(
            text,
            width=WIDTH,
            initial_indent=f"  {label:<10}",
            subsequent_indent=" " * 12,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for label, text in lines.items()
        if text
    ]
    return "\n".join([textwrap.fill(record.message, width=WIDTH, break_long_words=False), *format_failure])


class FailureText:
    """A failure in full, and its first line for pytest's short summary and JUnit's message.

    pytest shortens that line to the width of the terminal, but not in CI, where a plain string would appear twice.
    """

    def __init__(self, text: str, message: str) -> None:
        self.text = printable(text)
        self.reprcrash = SimpleNamespace(message=printable(" ".join(message.split())))

    def __str__(self) -> str:
        return self.text

    def toterminal(self, tw: Any) -> None:
        """Write every line."""
        tw.line(self.text)
