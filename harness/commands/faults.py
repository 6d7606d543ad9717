"""`gpt-harness faults`: run the kill matrix, record and report it, and compare it with its requirements."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

from harness.core.environment import cores, environment
from harness.core.record_files import RecordWriter, read
from harness.core.shipped_packages import SUITES
from harness.faults.catalogue import read_catalogue
from harness.report.verifications import fault_matrix, fault_tally


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness faults [ID ...] [--training] [--list] [--processes N] [--suites DIR] [--output DIR]`."""
    command = commands.add_parser(
        "faults",
        help="put every known fault into a correct GPT and see which check kills it",
        description="Put every known fault into a correct GPT-2, one at a time; judge and diagnose each; write the "
        "matrix of checks and faults. Exit status 1 if a requirement is missed.",
    )
    command.add_argument("ids", nargs="*", metavar="ID", help="faults or controls of the catalogue (default: all)")
    command.add_argument(
        "--training", action="store_true", help="the mistakes of training programs, in place of those of GPTs"
    )
    command.add_argument(
        "--list",
        action="store_true",
        help="print every id that a diagnosis may name, and that a [[deviation]] may declare, with its meaning",
    )
    command.add_argument(
        "--processes", type=int, default=cores(), metavar="N", help="worker processes (one a core: %(default)s)"
    )
    command.add_argument(
        "--suites", type=Path, default=SUITES, metavar="DIR", help="where the suites are (default: those shipped)"
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where it is written (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Run the matrix, write its records and its report, and print the tally; 1 if a requirement is missed."""
    if options.list:
        for name, what in sorted(read_catalogue().meanings.items()):
            print(f"{name:38} {what}")
        return 0
    # The matrix imports torch, which takes seconds that `gpt-harness --help` need not wait for.
    from harness.faults import training
    from harness.faults.matrix import debug_checks, judge_faults
    from harness.faults.training.matrix import judge_trainers, training_checks

    judge: Any = judge_trainers if options.training else judge_faults
    chosen: Any = (training.chosen if options.training else read_catalogue().chosen)(options.ids)
    started = time.perf_counter()
    path = options.output / "records" / f"faults-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}.jsonl"
    checks = (training_checks if options.training else debug_checks)(options.suites)
    header = {
        "run": "faults",
        "environment": environment(Path.cwd()),
        "whole": not options.ids,
        "faults": [fault.id for fault in chosen],
        "checks": [{"suite": c.suite, "check": c.name, "keep_reason": c.keep_reason} for c in checks],
    }
    recorder = RecordWriter(path, header)
    done = 0
    try:
        for row in judge(chosen, suites=options.suites, processes=min(options.processes, len(chosen))):
            recorder.write(row)
            done += 1
            if sys.stderr.isatty():
                print(f"\r{done} of {len(chosen)}", end="", file=sys.stderr, flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: {done} of {len(chosen)} are in {path}")
        return 130
    recorder.close({"seconds": time.perf_counter() - started})
    rows = read(path)
    tally = fault_tally.tally(rows)
    print(fault_tally.summary(tally))
    print(f"{fault_matrix.write(options.output, rows)[0]}; records: {path}")
    return 1 if tally.missed else 0
