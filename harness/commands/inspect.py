"""`gpt-harness inspect FILE.py:NAME`: print how a GPT was found, built and called, its abilities and its weight map.

`gpt-harness inspect --trainer train.py`: print what was understood of a training program, seam by seam.
"""

from __future__ import annotations

import argparse
import json
import textwrap
from typing import TYPE_CHECKING

from harness.core.errors import HarnessError
from harness.core.waiting import said_if_slow

if TYPE_CHECKING:  # this module imports torch, which takes seconds that other subcommands need not wait for
    from harness.judging.inspection import Inspection
    from harness.judging.trainer_inspection import TrainerInspection


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness inspect FILE.py:NAME` and `gpt-harness inspect --trainer train.py`."""
    command = commands.add_parser(
        "inspect",
        help="print what was understood of a GPT (its weight map ...) or of a training program",
        description="Print how a GPT is found, built and called, what it can do, and its weight map, step by step up "
        "to the first step that fails.",
    )
    command.add_argument("subject", nargs="?", metavar="FILE.py:NAME", help="as for pytest verifications/ --subject")
    command.add_argument("--trainer", metavar="TRAIN.py", help="as for pytest verifications/ --trainer")
    command.add_argument("--set", action="append", metavar="NAME=VALUE", help="as for pytest verifications/ --set")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the inspection of the subject; 1 if a step failed. Raises HarnessError unless exactly one is named."""
    if (options.subject is None) == (options.trainer is None):
        raise HarnessError("name either a GPT, FILE.py:NAME, or a training program, --trainer TRAIN.py")
    if options.trainer is not None:
        return _run_trainer(options)
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


def _run_trainer(options: argparse.Namespace) -> int:
    from harness.judging.trainer_inspection import inspect_trainer  # imports torch, as above
    from harness.training.program import TrainingProgram

    with said_if_slow(options.trainer, doing="in rehearsal"):
        program = TrainingProgram(options.trainer, chosen=options.set or ())
        try:
            inspection = inspect_trainer(program)
        finally:
            program.close()
    print(json.dumps(inspection.as_dict(), indent=2) if options.json else format_trainer_inspection(inspection))
    return 1 if inspection.error else 0


def format_trainer_inspection(inspection: TrainerInspection, width: int = 110) -> str:
    """Return the inspection of a training program as text for a terminal, wrapped at `width` characters."""
    lines = [inspection.spec, ""]
    before = ""
    for label, text in [*inspection.facts, *([("failed", inspection.error)] if inspection.error else [])]:
        lines += _labelled("" if label == before else label, text, width)
        before = label or before
    for reason, checks in inspection.not_judged.items():
        lines += ["", *_labelled("skipped", f"{', '.join(checks)}: {reason}", width)]
    return "\n".join(line.rstrip() for line in lines)


def _labelled(label: str, text: str, width: int) -> list[str]:
    return textwrap.wrap(
        text, width, initial_indent=f"{label:<10}", subsequent_indent=" " * 10, break_on_hyphens=False
    ) or [label]


def format_inspection(inspection: Inspection, width: int = 110) -> str:
    """Return the inspection as text for a terminal, wrapped at `width` characters."""
    lines = [inspection.spec, ""]

    def put(label: str, text: str) -> None:
        lines.extend(_labelled(label, text, width))

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
