"""`gpt-harness inspect FILE.py:NAME`: prints what is understood of a GPT before any check is run."""

from __future__ import annotations

import argparse
import json


def add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`gpt-harness inspect FILE.py:NAME [--json]`."""
    command = commands.add_parser(
        "inspect",
        help="print what is understood of a GPT: how it is built and called, what it can do, its weight map",
        description="Print what is understood of a GPT, step by step, and where it ends if it does.",
    )
    command.add_argument("subject", metavar="FILE.py:NAME", help="as for pytest verifications/ --subject")
    command.add_argument("--json", action="store_true", help="the same as JSON")
    command.set_defaults(run=run_inspect)


def run_inspect(options: argparse.Namespace) -> int:
    """Print it; 1 where a step failed."""
    from harness.commands.understanding import (
        shown,
        understand,
    )  # torch takes seconds, which other subcommands need not wait for

    found = understand(options.subject)
    print(json.dumps(found.as_dict(), indent=2) if options.json else shown(found))
    return 1 if found.failed else 0
