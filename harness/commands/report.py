"""`gpt-harness report`: write the page, tables and plots again, from records alone."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness report [FILE.jsonl ...] [--records DIR] [--output DIR]`."""
    command = commands.add_parser(
        "report",
        help="write the page, tables and plots again, from records alone",
        description="Write the page, tables and plots from records alone, by default the newest.",
    )
    command.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE.jsonl",
        help="records to report on, at most one run of each kind",
    )
    command.add_argument(
        "--records", type=Path, default=Path("reports/records"), metavar="DIR",
        help="where to find the newest verify-*.jsonl and bench-*.jsonl (default: %(default)s)",
    )  # fmt: skip
    command.add_argument(
        "--output",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="where the report is written (default: %(default)s)",
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Write the report and print the path of its page."""
    # The report imports pandas and matplotlib, which take a second that `gpt-harness --help` need not wait for.
    from harness.report import write_from, write_latest

    if options.files:
        written = write_from(options.output, options.files)
    else:
        written = write_latest(options.output, options.records)
    print(f"{written[0]} ({len(written) - 1} tables and plots beside it)")
    return 0
