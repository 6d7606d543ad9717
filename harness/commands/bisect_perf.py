"""`gpt-harness bisect-perf`: a step that looks slower, run again old against new, and the commit that did it."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bench.comparison import AGAIN, Measured
from harness.bench.statistics import Ratio, describe_ratio, describe_seconds, median, spread
from harness.core.environment import environment
from harness.core.errors import HarnessError, did_you_mean
from harness.core.record_files import RecordWriter
from harness.core.sizes import SIZES
from harness.history import bisect
from harness.history.bisect import NEW, OLD, WORKING_TREE, Process
from harness.history.bisect_worker import Job, WorkerSettings, jobs
from harness.history.compare_runs import selects

SECONDS = 20.0


def add_bisect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """`gpt-harness bisect-perf [OLD] [NEW] -k WORDS [--subject FILE.py:NAME] [--bisect]`."""
    command = commands.add_parser(
        "bisect-perf",
        help="an arm in two git revisions, block by block in turn; with --bisect, the commit that changed it",
        description="BenchmarkRun arms of the comparisons with the subject of two git revisions, each in a process of its own, "
        "block by block in turn, their answers held against each other. Exit status 1 if the new one is slower or does "
        "other work.",
    )
    command.add_argument("old", nargs="?", default="HEAD", metavar="OLD", help="a git revision (default: %(default)s)")
    command.add_argument(
        "new", nargs="?", default=WORKING_TREE, metavar="NEW",
        help="another; `.` is the working tree with its uncommitted changes (the default)",
    )  # fmt: skip
    command.add_argument("-k", dest="words", required=True, metavar="WORDS", help="the arms whose line has all WORDS")
    command.add_argument(
        "--subject", default="gpt:GPT", metavar="FILE.py:NAME", help="the subject in either revision (%(default)s)"
    )
    command.add_argument("--size", default="124M", choices=list(SIZES), help="of the model (default: %(default)s)")
    command.add_argument("--device", default="cpu", help="where it runs (default: %(default)s)")
    command.add_argument("--threads", type=int, metavar="N", help="threads of torch (default: its own choice)")
    command.add_argument(
        "--seconds", type=float, default=SECONDS, metavar="S", help="of measuring, an arm (default: %(default)g)"
    )
    command.add_argument("--quick", action="store_true", help="the shorter points of the comparisons")
    command.add_argument("--bisect", action="store_true", help="go through the commits between, by halving")
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where records go (default: %(default)s)"
    )
    command.set_defaults(run=run_bisect)


def run_bisect(options: argparse.Namespace) -> int:
    """Measure every arm that is named; with --bisect find the commit of one. The exit status."""
    settings = WorkerSettings("", options.subject, options.size, options.device, options.threads, options.quick)
    chosen = choose(jobs(SIZES[options.size], quick=options.quick), options.words, one=options.bisect)
    path = options.output / "records" / f"bisect-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl"
    repository = bisect.toplevel(Path.cwd())
    revisions = Revisions(repository, Path.cwd().resolve().relative_to(repository), settings)
    header = {"run": "bisect", "arguments": vars(options) | {"run": None}, "environment": environment(Path.cwd())}
    try:
        return compare_revisions(revisions, chosen, options, RecordWriter(path, header))
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {path}")
        return 130


def choose(known: list[Job], words: str, *, one: bool) -> list[Job]:
    """The jobs that are meant. Raises HarnessError for none, and with `one` for several."""
    found = [job for job in known if selects(words.replace("-", " "), job.label.replace("-", " "))]
    if not found:
        names = {job.comparison for job in known} | {job.arm for job in known}
        raise HarnessError(f"-k '{words}' selects nothing; {did_you_mean(words, names)}")
    if one and len(found) > 1:
        raise HarnessError(f"--bisect is for one arm, -k '{words}' selects {'; '.join(job.label for job in found)}")
    return found


@dataclass(frozen=True)
class Revisions:
    """Where revisions come from, and what their processes are started with."""

    repository: Path
    within: Path  # the repository: the folder that a subject's path is seen from
    settings: WorkerSettings

    @contextlib.contextmanager
    def running(self, named: Mapping[str, str]) -> Iterator[Mapping[str, Process]]:
        """While open, a process for each of `named`: old, new, old-again, each with its revision."""
        with contextlib.ExitStack() as stack:
            trees = {
                revision: stack.enter_context(bisect.checked_out(self.repository, revision))
                for revision in dict.fromkeys(named.values())
            }
            placed = {name: trees[revision] for name, revision in named.items()}
            yield stack.enter_context(bisect.workers(placed, self.settings, self.within))

    def described(self, revision: str) -> str:
        """Its commit and that one's first line."""
        return bisect.described(self.repository, revision)


def compare_revisions(
    revisions: Revisions, chosen: Sequence[Job], options: argparse.Namespace, recorder: RecordWriter
) -> int:
    """Old against new for each job, in the terminal and on record; the exit status."""
    named = {OLD: options.old, NEW: options.new, OLD + AGAIN: options.old}
    for name in (OLD, NEW):
        print(f"{name}  {revisions.described(named[name])}")
    found: dict[Job, Ratio | None] = {}
    with revisions.running(named) as processes:
        for job in chosen:
            measured = _measure(processes, job, named, options.seconds, revisions, recorder)
            print("\n".join(["", *told(job, measured)]))
            found[job] = measured.ratios.get(NEW)
    for job, ratio in found.items():
        if options.bisect and ratio is not None and ratio.verdict in ("FASTER", "SLOWER"):
            print("\n".join(["", *find_commit(revisions, job, ratio, options, recorder)]))
    recorder.close({})
    print(f"\nrecords: {recorder.path}")
    return int(any(ratio is None or ratio.verdict == "SLOWER" for ratio in found.values()))


def _measure(
    processes: Mapping[str, Process],
    job: Job,
    named: Mapping[str, str],
    seconds: float,
    revisions: Revisions,
    recorder: RecordWriter,
) -> Measured:
    measured = bisect.measure_revisions(processes, job, size=revisions.settings.size, seconds=seconds)
    recorder.write({**measured.row(), "arm": job.arm, "revisions": dict(named)})
    return measured


def told(job: Job, measured: Measured) -> Iterator[str]:
    """An arm's lines: each revision's time, its ratio to the old one's, and how near its answer is."""
    rounds = max((len(times) for times in measured.seconds.values()), default=0)
    yield f"{job.label} ({rounds} rounds of {measured.calls_per_block} calls)"
    for name, finding in measured.findings.items():
        line = f"  {name:<{len(OLD + AGAIN)}}  "
        if times := measured.seconds.get(name):
            line += describe_seconds(median(times), spread(times))
            if name in measured.ratios:
                line += f"  {describe_ratio(measured.ratios[name])}"
        else:
            line += "no time"
        yield line + (f"  ({finding.message})" if name == NEW or name not in measured.seconds else "")


def find_commit(
    revisions: Revisions, job: Job, whole: Ratio, options: argparse.Namespace, recorder: RecordWriter
) -> Iterator[str]:
    """Halve the commits between old and new, each held against the old one in turn with it."""
    commits = bisect.between(revisions.repository, options.old, options.new)
    steps: list[str] = []

    def has_changed(commit: str) -> bool | None:
        named = {OLD: options.old, NEW: commit}
        with revisions.running(named) as processes:
            for factor in (1, 3):  # where noise hides on which side it is, once more for longer
                measured = _measure(processes, job, named, factor * options.seconds, revisions, recorder)
                ratio = measured.ratios.get(NEW)
                steps.append(
                    f"{revisions.described(commit)}: {describe_ratio(ratio) if ratio else _why_none(measured)}"
                )
                side = bisect.side_of(ratio, whole) if ratio else None
                if side is not None or ratio is None:
                    return side
        return None

    found = bisect.halve(commits, has_changed)
    yield from steps
    yield f"the change came with {revisions.described(found.commit)}"
    for commit in found.suspects:
        yield f"  or with {revisions.described(commit)}, which could not be judged"


def _why_none(measured: Measured) -> str:
    return next(finding.message for finding in reversed(measured.findings.values()) if finding.verdict != "pass")
