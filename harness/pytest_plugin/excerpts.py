"""The lines of the user's file around the line that a finding names, for those who have only the report."""

from __future__ import annotations

import textwrap
from pathlib import Path

from harness.core.record_files import Row

AROUND = 3  # lines before and after
LONGEST = 160  # characters of a line


def with_excerpts(diagnosis: Row) -> Row:
    """Return a diagnosis each of whose findings has, if its file can be read, `excerpt`: {first line number, lines}."""
    findings = [{**found, **excerpt(str(found.get("source") or ""))} for found in diagnosis.get("findings", ())]
    return {**diagnosis, "findings": findings}


def excerpt(source: str) -> Row:
    """Return the lines around `file:number` under "excerpt", without common indentation; {} if they cannot be read."""
    file, _, number = source.rpartition(":")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
        at = int(number)
    except (OSError, ValueError):
        return {}
    if not 1 <= at <= len(lines):
        return {}
    first = max(1, at - AROUND)
    shown = textwrap.dedent("\n".join(line.expandtabs(4) for line in lines[first - 1 : at + AROUND])).split("\n")
    return {"excerpt": {"first": first, "lines": [line[:LONGEST] for line in shown]}}
