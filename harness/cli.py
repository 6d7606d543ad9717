"""The command `gpt-harness`: what is done with records once a run has written them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from harness.bench.proof import add_proof
from harness.commands.bisect_perf import add_bisect
from harness.commands.compare import add_compare
from harness.commands.faults import add_faults
from harness.commands.inspect import add_inspect
from harness.core.errors import HarnessError
from harness.core.process_exit import ExitGuard


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a subcommand. A mistake of the user's is one line on stderr and exit status 2."""
    options = parser().parse_args(arguments)
    guard = ExitGuard()  # a subject that is inspected may call os._exit(0) where it is imported
    guard.install()
    try:
        return int(options.run(options))
    except (HarnessError, OSError) as error:
        print(f"gpt-harness {options.command}: {error}", file=sys.stderr)
        return 2
    finally:
        guard.remove()


def parser() -> argparse.ArgumentParser:
    """The command line: a subcommand each, which sets `run` to its function."""
    top = argparse.ArgumentParser(
        prog="gpt-harness", description="Prove that a GPT is right and find out how fast it is."
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    add_report(commands)
    add_inspect(commands)
    add_faults(commands)
    add_compare(commands)
    add_bisect(commands)
    add_proof(commands)
    return top


def add_report(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`gpt-harness report [FILE.jsonl ...] [--records DIR] [--output DIR]`."""
    report = commands.add_parser(
        "report",
        help="write the page, tables and plots again, from records alone",
        description="Write the page, tables and plots from records alone, by default the newest.",
    )
    report.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE.jsonl",
        help="records to report on, at most one run of each kind",
    )
    report.add_argument(
        "--records", type=Path, default=Path("reports/records"), metavar="DIR",
        help="where the newest verify-*.jsonl and bench-*.jsonl are looked for (default: %(default)s)",
    )  # fmt: skip
    report.add_argument(
        "--output",
        type=Path,
        default=Path("reports"),
        metavar="DIR",
        help="where it is written (default: %(default)s)",
    )
    report.set_defaults(run=run_report)


def run_report(options: argparse.Namespace) -> int:
    """Write the report and print where its page is."""
    from harness.report import write_from, write_latest

    if options.files:
        written = write_from(options.output, options.files)
    else:
        written = write_latest(options.output, options.records)
    print(f"{written[0]} ({len(written) - 1} tables and plots beside it)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
