"""`gpt-harness loss-compare`: does a change of a training program change what it computes?"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from harness.core.errors import HarnessError, Missing
from harness.history.git_revisions import (
    WORKING_TREE,
    checkout,
    commits_between,
    describe_revision,
    git,
    repository_root,
)

if TYPE_CHECKING:  # imports torch, which takes seconds that other subcommands need not wait for
    from harness.history.compare_training import Parting

REHEARSALS = ("plain", "accumulate")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness loss-compare [OLD] [NEW] --trainer TRAIN.py [--exact] [--bisect]`."""
    command = commands.add_parser(
        "loss-compare",
        help="two revisions of a training program: the same bits, rounding, or a change; with --bisect, its commit",
        description="Rehearse a training program in two git revisions, with one seed, and say where the two part "
        "first: the event, the parameter and the line. Exit status 0 for the same bits, or for rounding (float64 "
        "decides); 1 for a change.",
    )
    command.add_argument("old", nargs="?", default="HEAD", metavar="OLD", help="a git revision (default: %(default)s)")
    command.add_argument(
        "new", nargs="?", default=WORKING_TREE, metavar="NEW",
        help="another; `.` is the working tree with its uncommitted changes (the default)",
    )  # fmt: skip
    command.add_argument(
        "--trainer",
        required=True,
        metavar="TRAIN.py",
        help="as for pytest verifications/ --trainer, in either revision",
    )
    command.add_argument("--old-flags", default="", metavar="FLAGS", help="more arguments of the old run alone")
    command.add_argument("--new-flags", default="", metavar="FLAGS", help="more arguments of the new run alone")
    command.add_argument("--exact", action="store_true", help="rounding is a change, too")
    command.add_argument("--bisect", action="store_true", help="find the commit between them that brought the change")
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare the two, print where they part, and return the exit status; 2 if they cannot be compared."""
    repository = repository_root(Path.cwd())
    for name, revision in (("old", options.old), ("new", options.new)):
        print(f"{name}  {describe_revision(repository, revision)} {getattr(options, f'{name}_flags')}".rstrip())
    for rehearsal, parting in _compare(repository, options, options.new):
        if isinstance(parting, str):
            print(f"{rehearsal}: not compared: {parting}")
            if rehearsal == REHEARSALS[0]:
                return 2
            continue
        print("\n".join(describe(rehearsal, parting)))
        if _is_change(parting, options.exact):
            if options.bisect:
                print("\n".join(_find_commit(repository, options, rehearsal)))
            return 1
    return 0


def describe(rehearsal: str, parting: Parting) -> Iterator[str]:
    """Yield the lines that say where two runs part."""
    words = {"equal": "the same bits at every step", "rounding": "rounding only", "changed": "CHANGED"}
    yield f"{rehearsal}: {words[parting.kind]}"
    for label, text in (("parts at", parting.what), ("because", parting.why), ("look at", parting.line)):
        if text:
            yield f"  {label:9}{text}"


def _is_change(parting: Parting, exact: bool) -> bool:
    return parting.kind == "changed" or (exact and parting.kind == "rounding")


def _compare(
    repository: Path, options: argparse.Namespace, new: str, rehearsals: Sequence[str] = REHEARSALS
) -> Iterator[tuple[str, Parting | str]]:
    """Yield, for each rehearsal, where the old revision and another part, or why they cannot be compared."""
    from harness.history.compare_training import compare_recordings  # imports torch, as above
    from harness.training.program import TrainingProgram

    within = Path.cwd().resolve().relative_to(repository)
    with contextlib.ExitStack() as stack:
        programs = []
        for revision, flags in ((options.old, options.old_flags), (new, options.new_flags)):
            tree = stack.enter_context(_tree(repository, revision))
            with contextlib.chdir(tree / within):  # a program is named from there
                programs.append((revision, TrainingProgram(f"{options.trainer} {flags}")))
            stack.callback(programs[-1][1].close)
        for rehearsal in rehearsals:
            recordings = []
            for revision, program in programs:
                try:
                    recordings.append(program.record(rehearsal))
                except (HarnessError, Missing) as error:
                    yield rehearsal, f"{revision}: {error}"
                    break
            else:
                yield rehearsal, compare_recordings(*recordings)


@contextlib.contextmanager
def _tree(repository: Path, revision: str) -> Iterator[Path]:
    """Check out a revision inside the block, with the files that git ignores, such as data, beside its own."""
    from harness.training.scratch import LEFT_OUT, copy_or_link

    with checkout(repository, revision) as tree:
        if tree != repository:
            for name in git(repository, "ls-files", "--others").splitlines():
                path = Path(name)
                if not set(path.parts) & LEFT_OUT and path.suffix != ".py" and not (tree / path).exists():
                    copy_or_link(repository / path, tree / path)
        yield tree


def _find_commit(repository: Path, options: argparse.Namespace, rehearsal: str) -> Iterator[str]:
    """Yield the steps of a bisection, and the commit that brought the change."""
    from harness.history.bisect import bisect  # imports torch, as above

    steps: list[str] = []

    def has_changed(commit: str) -> bool | None:
        ((_, parting),) = _compare(repository, options, commit, [rehearsal])
        said = parting if isinstance(parting, str) else parting.kind
        steps.append(f"  {describe_revision(repository, commit)}: {said}")
        return None if isinstance(parting, str) else _is_change(parting, options.exact)

    culprit = bisect(commits_between(repository, options.old, options.new), has_changed)
    yield from steps
    yield f"the change came with {describe_revision(repository, culprit.commit)}"
    for commit in culprit.suspects:
        yield f"  or with {describe_revision(repository, commit)}, which could not be compared"
