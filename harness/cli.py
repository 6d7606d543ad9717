"""The command `gpt-harness`: its subcommands, one module of harness.commands each."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from harness.commands import (
    alarms,
    bisect_perf,
    compare,
    faults,
    inspect,
    lessons,
    loss_compare,
    proof,
    report,
    survey,
    sweep,
    triage,
)
from harness.core.errors import HarnessError
from harness.core.process_exit import ExitGuard

# In the order of `gpt-harness --help`. A command imports torch inside its `run`: `--help` and mistakes on the command
# line are answered at once, without the seconds that torch takes to import.
COMMANDS = (report, inspect, triage, survey, faults, alarms, lessons, sweep, compare, loss_compare, bisect_perf, proof)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand and return its exit status.

    A user's mistake (HarnessError, or OSError for a file) is printed as one line on stderr, and the exit status is 2.
    """
    options = parser().parse_args(arguments)
    guard = ExitGuard()  # a subject that is inspected may call os._exit(0)
    guard.install()
    try:
        status = int(options.run(options))
    except (HarnessError, OSError) as error:
        print(f"gpt-harness {options.command}: {error}", file=sys.stderr)
        status = 2
    guard.finish(status)
    if status == 0:
        guard.remove()  # otherwise it stays, for exit handlers that a subject registered
    return status


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line. Each subcommand sets `run` to its function."""
    top = argparse.ArgumentParser(
        prog="gpt-harness", description="Prove that a GPT is right and find out how fast it is."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
