"""`gpt-harness lessons`: do the lessons' training runs, record and report them, and judge the claims with them."""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from harness.core.environment import cores, environment
from harness.core.errors import HarnessError
from harness.core.shipped_packages import SUITES
from harness.lessons.execution import Outcome, execute
from harness.lessons.plan import Plan, plan_lessons, plan_preset
from harness.lessons.progress import Progress
from harness.lessons.records import write_records

FAILED, UNFINISHED = 1, 3  # exit statuses; after a signal it is 128 and its number
CLAIMS = SUITES / "claims.toml"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness lessons [LESSON ...] [--only ARM ...] [--preset P] [--budget MINUTES] ...`."""
    command = commands.add_parser(
        "lessons",
        help="do the lessons' training runs and report them",
        description="Do the training runs that the lessons describe, at a size that two cores carry in half an hour, "
        "and write reports/lessons.md. A finished run is not repeated, an interrupted one is resumed.",
        epilog="exit status: 0 all chosen runs are finished; 1 a run or the judging of the claims failed; 3 the budget "
        "is used up and runs remain; 130 and 143 stopped by Ctrl-C or SIGTERM, and what was done is saved",
    )
    command.add_argument("lessons", nargs="*", metavar="LESSON", help="lessons of lessons.toml (default: all)")
    command.add_argument(
        "--only", nargs="+", default=[], metavar="ARM", help="only these arms of the lessons: cosine, 'constant-*'"
    )
    command.add_argument(
        "--preset", metavar="P", help="instead, one run of a preset of the trainer, such as gpt2-124m on a GPU"
    )
    command.add_argument(
        "--budget", type=float, default=0.0, metavar="MINUTES", help="the most that the runs take (default: no limit)"
    )
    command.add_argument(
        "--processes", type=int, default=cores(), metavar="N", help="runs at once, one thread each (%(default)s)"
    )
    command.add_argument("--force", action="store_true", help="run the preset on a CPU that is too slow for it")
    command.add_argument("--no-claims", action="store_true", help="do not judge the claims at the end")
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where runs and report go (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do the runs, write their records and report, judge the claims, and return the exit status."""
    started = time.perf_counter()
    plan = _plan(options)
    machine = environment(Path.cwd()) | ({"threads": plan.threads} if plan.threads else {})
    progress = Progress(plan.unfinished, processes=plan.processes)
    if before := len(plan.folders) - len(plan.unfinished):
        progress.message(f"{before} of {len(plan.folders)} runs were finished before and are not repeated")
    if outdated := sum(folder.outdated for folder in plan.folders):
        progress.message(f"{outdated} runs are done again: their settings or the trainer's source have changed since")
    outcome = execute(plan, minutes=options.budget, commit=machine["git_commit"], progress=progress)
    seconds = time.perf_counter() - started
    path = write_records(options.output, plan.folders, plan.lessons, outcome, machine, seconds)
    if path is not None:
        # The report imports matplotlib, which takes a second that `gpt-harness --help` need not wait for.
        from harness.report.lessons.report_files import write_from

        print(f"{write_from(options.output, path)[0]}; records: {path}")
    for name, why in (outcome.unfinished | outcome.failed).items():
        print(f"NOT FINISHED  {name}: {why}")
    if path is None:
        print("no run is finished, so there is no report")
    elif outcome.signal is None and not options.no_claims and not judge_claims(options.output):
        return FAILED
    return exit_status(outcome)


def _plan(options: argparse.Namespace) -> Plan:
    """Return what the options ask for. Raises HarnessError for options that do not go together."""
    if options.budget < 0 or options.processes < 1:
        raise HarnessError("expected a --budget of 0 minutes or more, and --processes of 1 or more")
    if not options.preset:
        if options.force:
            raise HarnessError("--force is for a --preset; expected both or neither")
        return plan_lessons(options.output, options.lessons, options.only, processes=options.processes)
    if options.lessons:
        raise HarnessError(f"--preset runs none of the lessons of lessons.toml; leave out {options.lessons[0]}")
    if not options.budget:
        raise HarnessError(f"--preset {options.preset} needs --budget MINUTES, which decides the number of steps")
    return plan_preset(options.output, options.preset, options.only, minutes=options.budget, force=options.force)


def exit_status(outcome: Outcome) -> int:
    """Return the exit status: nothing unfinished looks finished."""
    if outcome.signal is not None:
        return 128 + outcome.signal
    return FAILED if outcome.failed else UNFINISHED if outcome.unfinished else 0


def judge_claims(reports: Path) -> bool:
    """Judge the claims with the records in `reports`, in a process of its own; return True if that went well."""
    if not CLAIMS.is_file():
        print(f"no {CLAIMS}, so no claims are judged")
        return True
    command = [sys.executable, "-m", "pytest", str(CLAIMS), "-q", "--reports", str(reports)]
    return subprocess.run(command, check=False).returncode == 0
