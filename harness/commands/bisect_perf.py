"""`gpt-harness bisect-perf`: compare an arm in two git revisions, and find the commit that changed its time."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.result import ComparisonResult
from harness.bench.statistics import Ratio, describe_ratio, describe_seconds, median, spread
from harness.core.environment import environment
from harness.core.errors import HarnessError, did_you_mean
from harness.core.record_files import RecordWriter
from harness.core.sizes import SIZES
from harness.history.bisect import bisect, is_past_change
from harness.history.compare_revisions import NEW, OLD, measure_revisions
from harness.history.compare_runs import selects
from harness.history.git_revisions import (
    WORKING_TREE,
    checkout,
    commits_between,
    describe_revision,
    repository_root,
)
from harness.history.jobs import Job, WorkerSettings, list_jobs
from harness.history.worker_process import WorkerProcess, start_workers

SECONDS = 20.0


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness bisect-perf [OLD] [NEW] -k WORDS [--subject FILE.py:NAME] [--bisect]`."""
    command = commands.add_parser(
        "bisect-perf",
        help="compare an arm in two git revisions; with --bisect, find the commit that changed it",
        description="Run arms of the comparisons with the subject of two git revisions, each in a process of its own, "
        "block by block in turn, and compare their answers. Exit status 1 if the new revision is slower or does other "
        "work.",
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
    command.add_argument("--bisect", action="store_true", help="find the commit between them, by halving")
    command.add_argument(
        "--output", type=Path, default=Path("reports"), metavar="DIR", help="where records go (default: %(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measure every selected arm, with --bisect find the commit of one, and return the exit status."""
    settings = WorkerSettings("", options.subject, options.size, options.device, options.threads, options.quick)
    jobs = choose(list_jobs(SIZES[options.size], quick=options.quick), options.words, one=options.bisect)
    path = options.output / "records" / f"bisect-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.jsonl"
    repository = repository_root(Path.cwd())
    revisions = Revisions(repository, Path.cwd().resolve().relative_to(repository), settings)
    header = {"run": "bisect", "arguments": vars(options) | {"run": None}, "environment": environment(Path.cwd())}
    try:
        return compare_revisions(revisions, jobs, options, RecordWriter(path, header))
    except KeyboardInterrupt:
        print(f"interrupted; what was measured is in {path}")
        return 130


def choose(known: list[Job], words: str, *, one: bool) -> list[Job]:
    """Return the jobs whose label contains all `words`. Raises HarnessError for none, and with `one` for several."""
    chosen = [job for job in known if selects(words.replace("-", " "), job.label.replace("-", " "))]
    if not chosen:
        names = {job.comparison for job in known} | {job.arm for job in known}
        raise HarnessError(f"-k '{words}' selects nothing; {did_you_mean(words, names)}")
    if one and len(chosen) > 1:
        raise HarnessError(f"--bisect is for one arm, -k '{words}' selects {'; '.join(job.label for job in chosen)}")
    return chosen


@dataclass(frozen=True)
class Revisions:
    """The repository that revisions come from, and the settings that their worker processes start with."""

    repository: Path
    within: Path  # the folder inside the repository that a subject's path is relative to
    settings: WorkerSettings

    @contextlib.contextmanager
    def start_workers(self, revisions: Mapping[str, str]) -> Iterator[Mapping[str, WorkerProcess]]:
        """Run a worker inside the block for each of `revisions`, which maps old, new and old-again to a revision."""
        with contextlib.ExitStack() as stack:
            trees = {
                revision: stack.enter_context(checkout(self.repository, revision))
                for revision in dict.fromkeys(revisions.values())
            }
            trees_by_name = {name: trees[revision] for name, revision in revisions.items()}
            yield stack.enter_context(start_workers(trees_by_name, self.settings, self.within))

    def describe(self, revision: str) -> str:
        """Return the short hash of the revision's commit and the first line of its message."""
        return describe_revision(self.repository, revision)


def compare_revisions(
    revisions: Revisions, jobs: Sequence[Job], options: argparse.Namespace, recorder: RecordWriter
) -> int:
    """Measure each job in the old and the new revision, print and record the result, and return the exit status."""
    names = {OLD: options.old, NEW: options.new, OLD + TWIN_SUFFIX: options.old}
    for name in (OLD, NEW):
        print(f"{name}  {revisions.describe(names[name])}")
    ratios: dict[Job, Ratio | None] = {}
    with revisions.start_workers(names) as processes:
        for job in jobs:
            result = _measure(processes, job, names, options.seconds, revisions, recorder)
            print("\n".join(["", *format_result(job, result)]))
            ratios[job] = result.ratios.get(NEW)
    for job, ratio in ratios.items():
        if options.bisect and ratio is not None and ratio.verdict in ("FASTER", "SLOWER"):
            print("\n".join(["", *find_commit(revisions, job, ratio, options, recorder)]))
    recorder.close({})
    print(f"\nrecords: {recorder.path}")
    return int(any(ratio is None or ratio.verdict == "SLOWER" for ratio in ratios.values()))


def _measure(
    processes: Mapping[str, WorkerProcess],
    job: Job,
    names: Mapping[str, str],
    seconds: float,
    revisions: Revisions,
    recorder: RecordWriter,
) -> ComparisonResult:
    result = measure_revisions(processes, job, size=revisions.settings.size, seconds=seconds)
    recorder.write({**result.row(), "arm": job.arm, "revisions": dict(names)})
    return result


def format_result(job: Job, result: ComparisonResult) -> Iterator[str]:
    """Yield the lines of a job: each revision's time, its ratio to the old one, and the message of its verification."""
    rounds = max((len(times) for times in result.seconds.values()), default=0)
    yield f"{job.label} ({rounds} rounds of {result.calls_per_block} calls)"
    for name, verification in result.verifications.items():
        line = f"  {name:<{len(OLD + TWIN_SUFFIX)}}  "
        if times := result.seconds.get(name):
            line += describe_seconds(median(times), spread(times))
            if name in result.ratios:
                line += f"  {describe_ratio(result.ratios[name])}"
        else:
            line += "no time"
        yield line + (f"  ({verification.message})" if name == NEW or name not in result.seconds else "")


def find_commit(
    revisions: Revisions, job: Job, whole: Ratio, options: argparse.Namespace, recorder: RecordWriter
) -> Iterator[str]:
    """Bisect the commits between old and new, each measured beside the old one, and yield the lines to print."""
    commits = commits_between(revisions.repository, options.old, options.new)
    steps: list[str] = []

    def has_changed(commit: str) -> bool | None:
        names = {OLD: options.old, NEW: commit}
        with revisions.start_workers(names) as processes:
            for factor in (1, 3):  # a second time, for longer, if noise hides on which side of the change it is
                result = _measure(processes, job, names, factor * options.seconds, revisions, recorder)
                ratio = result.ratios.get(NEW)
                steps.append(f"{revisions.describe(commit)}: {describe_ratio(ratio) if ratio else _why_none(result)}")
                changed = is_past_change(ratio, whole) if ratio else None
                if changed is not None or ratio is None:
                    return changed
        return None

    culprit = bisect(commits, has_changed)
    yield from steps
    yield f"the change came with {revisions.describe(culprit.commit)}"
    for commit in culprit.suspects:
        yield f"  or with {revisions.describe(commit)}, which could not be judged"


def _why_none(result: ComparisonResult) -> str:
    return next(found.message for found in reversed(result.verifications.values()) if found.verdict != "pass")
