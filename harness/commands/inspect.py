"""`gpt-harness inspect FILE.py:NAME`: print how a GPT was found, built and called, its abilities and its weight map."""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

from harness.core.waiting import said_if_slow

if TYPE_CHECKING:  # this module imports torch, which takes seconds that other subcommands need not wait for
    from harness.judging.inspection import Inspection


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness inspect FILE.py:NAME [--json]`."""
    command = commands.add_parser(
        "inspect",
        help="print how a GPT is built and called, what it can do, and its weight map",
        description="Print how a GPT is found, built and called, what it can do, and its weight map, step by step up "
        "to the first step that fails.",
    )
    command.add_argument("subject", metavar="FILE.py:NAME", help="as for pytest verifications/ --subject")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the inspection of the subject; 1 if a step failed."""
    from harness.judging.inspection import inspect_subject  # imports torch, as above
    from harness.measures.options.not_judged import describe, not_judged
    from harness.subjects.adapters import adapt

    with said_if_slow(options.subject):
        inspection = inspect_subject(options.subject)
        if not inspection.failed:
            left_out = describe(not_judged(adapt(options.subject), "debug"))
            inspection.notes += [f"options that no check judges: {left_out}"] if left_out else []
    print(json.dumps(inspection.as_dict(), indent=2) if options.json else format_inspection(inspection))
    return 1 if inspection.failed else 0


def format_inspection(inspection: Inspection, width: int = 110) -> str:
    """Return the inspection as text for a terminal, wrapped at `width` characters."""
    lines = [inspection.spec, ""]

    def put(label: str, text: str) -> None:
        lines.extend(
            textwrap.wrap(
                text, width, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_on_hyphens=False
            )
            or [label]
        )

    for label in ("found", "built", "called"):
        if label in inspection.facts:
            put(label, inspection.facts[label])
    for number, (name, text) in enumerate(inspection.abilities.items()):
        put("" if number else "can", f"{name}{': ' if text else ''}{text}")
    for number, (name, text) in enumerate(inspection.lacking.items()):
        put("" if number else "cannot", f"{name}: looked for {text}")
    if "weights" in inspection.facts:
        put("weights", inspection.facts["weights"])
        lines += ["", *_table(inspection.weights), ""]
    for note in inspection.notes:
        put("note", note)
    for name in inspection.unmapped_parameters:
        put("unmapped", f"{name}: GPT-2 has no such parameter; it keeps its own values")
    for name in inspection.missing:
        put("missing", f"{name}: the subject has no such parameter; nothing is written there")
    if inspection.failed:
        lines.append("")
        put("failed", f"to {inspection.failed}: {inspection.error}")
        if inspection.paste:
            lines += ["", *inspection.paste.splitlines()]
    return "\n".join(line.rstrip() for line in lines)


def _table(rows: list[dict[str, str]]) -> list[str]:
    header = {"own": "own", "shape": "shape", "published": "GPT-2's", "as": "lies", "by": "mapped by"}
    widths = {key: max(len(row[key]) for row in [header, *rows]) for key in header}
    return ["  ".join(f"{row[key]:<{widths[key]}}" for key in header).rstrip() for row in [header, *rows]]
