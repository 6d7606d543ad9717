"""`gpt-harness survey DIR`: judge a folder of other people's GPTs; print what is found beside what is true."""

from __future__ import annotations

import argparse
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from harness.core.environment import environment
from harness.core.record_files import RecordWriter, read
from harness.report import survey as report


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness survey DIR [--truth FILE] [--processes N] [--seconds S] [--output DIR]`."""
    command = commands.add_parser(
        "survey",
        help="judge a folder of other people's GPTs: which are read, what is found in each, what is true",
        description="Judge each GPT of a folder at the debug size, as `pytest verifications/ -m debug --subject` does, "
        "and print what was read and found beside what is true of it. DIR/survey.toml says that: [[subject]] with "
        "spec = 'FILE.py:NAME', truth = 'in words', deviations = ['the ids to be found'], fair = true. Without it, one "
        "GPT of each file is judged, and its docstring is shown. Exit status 1 if a fair one is not read, or an id is "
        "missed or reported wrongly.",
    )
    command.add_argument("folder", type=Path, metavar="DIR", help="where the files are")
    command.add_argument("--truth", type=Path, metavar="FILE", help="what is true of each (default: DIR/survey.toml)")
    command.add_argument("--only", default="", metavar="TEXT", help="only those with TEXT in FILE.py:NAME")
    command.add_argument("--processes", type=int, default=1, metavar="N", help="how many at once (%(default)s)")
    command.add_argument(
        "--seconds", type=float, default=600.0, metavar="S", help="end a run after so long (%(default)g)"
    )
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where it is written (%(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Judge every GPT, print a table and write records and page; 1 if a fair one is not read or something is wrong."""
    from harness.judging.survey import end_running, survey, surveyed

    chosen = [each for each in surveyed(options.folder, options.truth) if options.only in each.spec]
    path = options.output / "records" / f"survey-{time.strftime('%Y%m%dT%H%M%S')}-{time.time_ns() % 1000:03d}.jsonl"
    recorder = RecordWriter(path, {"run": "survey", "environment": environment(Path.cwd())})
    started = time.perf_counter()
    pool = ThreadPoolExecutor(options.processes)
    try:
        for row in pool.map(lambda gpt: survey(gpt, options.folder, seconds=options.seconds), chosen):
            recorder.write(row)
            print("\n".join(report.lines(row)), flush=True)
    except KeyboardInterrupt:
        print(f"interrupted: what was judged is in {path}", file=sys.stderr)
        return 130
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        end_running()
    recorder.close({"seconds": time.perf_counter() - started})
    rows = read(path)
    print("\n".join(["", *report.summary(rows), "", f"{report.write(options.output, rows)[0]}; records: {path}"]))
    return 1 if report.shortfalls(rows) else 0
