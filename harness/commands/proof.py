"""`gpt-harness proof`: test the engine of the benchmarks on this machine, with arms whose ratio is known."""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.bench.proof import prove


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness proof [--runs N] [--seconds S] [--change PERCENT] [--threads N] [--output DIR]`."""
    command = commands.add_parser(
        "proof",
        help="test the engine of the benchmarks on this machine",
        description="Compare identical arms, and arms of which one does a known part more work, with the engine of the "
        "benchmarks; measure the memory of attention, which is known. Exit status 1 if more than 5% of the identical "
        "arms were called different, fewer than 90% of the changes were found, or the memory is more than 1% off.",
    )
    command.add_argument("--runs", type=int, default=20, metavar="N", help="comparisons of each kind (%(default)s)")
    command.add_argument(
        "--seconds", type=float, default=5.0, metavar="S", help="time limit of one comparison (%(default)s)"
    )
    command.add_argument(
        "--change", type=float, default=5.0, metavar="PERCENT", help="how much work is added (%(default)s)"
    )
    command.add_argument(
        "--threads",
        type=int,
        default=1,
        metavar="N",
        help="threads of torch (%(default)s: with more, a busy machine makes each wait for the others)",
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where it is recorded (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure, record and print; return the exit status."""
    return prove(
        runs=options.runs,
        seconds=options.seconds,
        change=options.change,
        threads=options.threads,
        output=options.output,
    )
