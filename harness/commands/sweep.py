"""`gpt-harness sweep`: train models of several sizes under several budgets, and fit scaling laws to them."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from harness.core.environment import environment
from harness.core.errors import HarnessError

FAILED, UNFINISHED = 1, 3  # exit statuses, as those of `gpt-harness lessons`


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness sweep [--plan P] [--jobs N | --ray [ADDRESS]] [--budget-minutes M] [--fit FILE.csv] ...`."""
    command = commands.add_parser(
        "sweep",
        help="train a grid of sizes and budgets, and fit scaling laws to it",
        description="Train models of several sizes under several budgets of FLOPs, fit both of Chinchilla's laws with "
        "bootstrap intervals, and write reports/sweep.md. A finished run is not repeated; an interrupted one resumes.",
        epilog="exit status: 0 all runs are finished; 1 a run failed; 3 the budget is used up and runs remain; "
        "130 and 143 stopped by Ctrl-C or SIGTERM, and what was done is saved",
    )
    command.add_argument(
        "--plan", default="full", metavar="P", help="quick, full or long of sweeps.toml, or a FILE.toml (%(default)s)"
    )
    where = command.add_mutually_exclusive_group()
    where.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at once on this machine (%(default)s)")
    where.add_argument(
        "--ray", nargs="?", const="local", metavar="ADDRESS",
        help="run on a Ray cluster: HOST:PORT, or two workers on this machine; needs pip install 'gpt-harness[sweep]'",
    )  # fmt: skip
    command.add_argument(
        "--budget-minutes", type=float, default=0.0, metavar="M", help="the most that the runs take (0: no limit)"
    )
    command.add_argument("--device", default="cpu", metavar="D", help="of the trainer: cpu, cuda, cuda:1 (%(default)s)")
    command.add_argument(
        "--fit", type=Path, metavar="FILE.csv", help="train nothing: fit the laws to a table of N, D (or C) and loss"
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where runs and report go (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Do the runs or read the table, write records and report, print the fits, and return the exit status."""
    if options.budget_minutes < 0 or options.jobs < 1:
        raise HarnessError("expected --budget-minutes of 0 or more, and --jobs of 1 or more")
    return _fit_table(options) if options.fit else _train(options)


def _fit_table(options: argparse.Namespace) -> int:
    from harness.sweeps.records import write_table_records  # here: torch takes seconds to import
    from harness.sweeps.run_table import read_run_table

    started = time.perf_counter()
    rows = read_run_table(options.fit)
    path = write_table_records(options.output, options.fit, rows, seconds=time.perf_counter() - started)
    _report(options.output, path)
    return 0


def _train(options: argparse.Namespace) -> int:
    from harness.lessons.progress import Progress
    from harness.sweeps.cluster import execute_on_cluster, require_ray
    from harness.sweeps.execution import execute_here, why_not_finished
    from harness.sweeps.plan_file import read_plan
    from harness.sweeps.records import write_records
    from harness.sweeps.sources import write_source
    from harness.sweeps.sweep_runs import RUNS, sweep_runs

    started = time.perf_counter()
    plan = read_plan(options.plan)
    if options.ray:
        require_ray()  # an error now, and not after the texts are drawn
    parent = options.output / RUNS
    texts = {
        source.name: write_source(parent / "texts", source, validation_tokens=plan.validation_tokens)
        for source in plan.sources
    }
    runs = sweep_runs(plan, texts, parent / plan.name, device=options.device)
    machine = environment(Path.cwd())
    left = [run.folder.run for run in runs if not run.folder.finished]
    progress = Progress(left, processes=options.jobs)
    if done := len(runs) - len(left):
        progress.message(f"{done} of {len(runs)} runs were finished before and are not repeated")
    common = {"minutes": options.budget_minutes, "commit": machine["git_commit"], "progress": progress}
    if options.ray:
        outcome = execute_on_cluster(runs, address=options.ray, **common)
    else:
        outcome = execute_here(runs, jobs=options.jobs, **common)
    not_finished = why_not_finished(outcome)
    seconds = time.perf_counter() - started
    path = write_records(options.output, plan, texts, runs, not_finished=not_finished, machine=machine, seconds=seconds)
    if path is not None:
        _report(options.output, path)
    for name, why in not_finished.items():
        print(f"NOT FINISHED  {name}: {why}")
    if outcome.signal is not None:
        return 128 + outcome.signal
    return FAILED if outcome.failed else UNFINISHED if outcome.unfinished else 0


def _report(output: Path, records: Path) -> None:
    from harness.report.sweeps.report_files import write_from
    from harness.report.sweeps.summary import summary

    print("\n".join(summary(records)))
    print(f"{write_from(output, records)[0]}; records: {records}")
