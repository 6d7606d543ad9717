"""`gpt-harness alarms`: judge right programs again and again with other random numbers; nothing may be red."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from harness.core.environment import environment
from harness.core.record_files import RecordWriter, Row
from harness.core.shipped_packages import SUITES
from harness.faults.catalogue import read_catalogue


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness alarms [SPEC ...] [--repetitions N] [--only SUITE::CHECK] [--minutes M] [--output DIR]`."""
    command = commands.add_parser(
        "alarms",
        help="judge right programs again and again with other random numbers: nothing may be red",
        description="Judge right programs by every check of the debug size, each time with other weights, tokens and "
        "random numbers: the equivalent programs of the catalogue of faults, and those that are named. All programs "
        "are judged under one seed, then under the next. Exit status 1 if a check was red.",
    )
    command.add_argument("specs", nargs="*", metavar="SPEC", help="further right programs, as FILE.py:NAME")
    command.add_argument("--repetitions", type=int, default=200, metavar="N", help="how many seeds (%(default)s)")
    command.add_argument("--first", type=int, default=1, metavar="SEED", help="the first seed (%(default)s)")
    command.add_argument(
        "--only", action="append", metavar="PATTERN", help="only checks like 'dropout::*' (repeatable; default: all)"
    )
    command.add_argument(
        "--minutes", type=float, default=float("inf"), metavar="M", help="begin no program after these"
    )
    command.add_argument(
        "--suites", type=Path, default=SUITES, metavar="DIR", help="where the suites are (default: those shipped)"
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where it is recorded (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Judge, record and print; return 1 if a check was red, 130 after Ctrl-C."""
    import torch  # slow to import

    from harness.faults.false_alarms import checks_like, judged_again, right_programs
    from harness.faults.matrix import debug_checks

    torch.set_num_threads(1)
    checks = checks_like(debug_checks(options.suites), options.only or ["*"])
    path = options.output / "records" / f"alarms-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}.jsonl"
    recorder = RecordWriter(path, {"run": "alarms", "environment": environment(Path.cwd()), "checks": len(checks)})
    started, rows = time.monotonic(), list[Row]()
    with tempfile.TemporaryDirectory() as folder:
        programs = list(right_programs(read_catalogue().controls, options.specs, Path(folder)))
        try:
            for row in judged_again(programs, checks, first=options.first, repetitions=options.repetitions):
                recorder.write(row)
                rows.append(row)
                for each in row["flagged"]:
                    print(f"{row['program']}, seed {row['seed']}: {each['check']}: {each['message']}"[:400], flush=True)
                if time.monotonic() - started > 60 * options.minutes:
                    break
        except KeyboardInterrupt:
            print("\n".join([f"interrupted: what was judged is in {path}", *summary(rows)]))
            return 130
    recorder.close({"seconds": time.monotonic() - started})
    print("\n".join([*summary(rows), f"records: {path}"]))
    return 1 if any(row["flagged"] for row in rows) else 0


def summary(rows: Sequence[Row]) -> list[str]:
    """Return how often programs were judged, and a line for each check that was red of a program."""
    judged = Counter(row["program"] for row in rows)
    if not judged:
        return ["nothing was judged"]
    flagged = Counter((row["program"], each["check"]) for row in rows for each in row["flagged"])
    times = f"{min(judged.values())}" + (f" to {max(judged.values())}" if len(set(judged.values())) > 1 else "")
    verdicts = sum(sum(row["verdicts"].values()) - row["verdicts"].get("skip", 0) for row in rows)
    return [
        f"{len(judged)} right programs, {times} times each, {verdicts:,} verdicts: {sum(flagged.values())} red",
        *(f"  {program}: {check}, {n} times of {judged[program]}" for (program, check), n in sorted(flagged.items())),
    ]
