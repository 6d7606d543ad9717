"""`gpt-harness loss-compare`: does a change of a training program change what it computes?"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
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
    from harness.training.program import TrainingProgram

MOST = 24  # pairs of --statistical
REHEARSALS = ("plain", "accumulate")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `gpt-harness loss-compare [OLD] [NEW] --trainer TRAIN.py [--exact] [--bisect] [--statistical]`."""
    command = commands.add_parser(
        "loss-compare",
        help="two revisions of a training program: the same bits, rounding, or a change; with --bisect, its commit",
        description="Rehearse a training program in two git revisions, with one seed, and say where the two part "
        "first: the event, the parameter and the line. Exit status 0 for the same bits, or for rounding (float64 "
        "decides); 1 for a change. With --statistical, for changes that are meant to change numbers: is the loss after "
        "N steps worse by more than d? 0 for no, 1 for yes, 3 if the pairs do not decide it.",
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
    command.add_argument(
        "--statistical", action="store_true", help="compare the losses of runs in pairs, with many seeds"
    )
    command.add_argument("--steps", type=int, default=150, metavar="N", help="of --statistical (default: %(default)s)")
    command.add_argument(
        "--worse",
        type=float,
        default=1.0,
        metavar="PERCENT",
        help="of --statistical: the d that matters, of the old loss (default: %(default)s)",
    )
    command.add_argument(
        "--pairs", type=int, default=MOST, metavar="N", help="of --statistical: at most so many (default: %(default)s)"
    )
    command.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Compare the two, print where they part, and return the exit status; 2 if they cannot be compared."""
    repository = repository_root(Path.cwd())
    for name, revision in (("old", options.old), ("new", options.new)):
        print(f"{name}  {describe_revision(repository, revision)} {getattr(options, f'{name}_flags')}".rstrip())
    if options.statistical:
        return _compare_losses(repository, options)
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

    with _programs(repository, options, new) as programs:
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


def _compare_losses(repository: Path, options: argparse.Namespace) -> int:
    """Compare the losses of runs in pairs, print what is planned and found, and return the exit status."""
    from harness.history import paired_losses  # imports torch, as above

    if min(options.steps, options.worse, options.pairs - paired_losses.FEWEST + 1) <= 0:
        raise HarnessError(
            f"--steps {options.steps}, --worse {options.worse:g} and --pairs {options.pairs}: expected numbers above "
            f"0, and at least {paired_losses.FEWEST} pairs"
        )
    with _programs(repository, options, options.new, apart=True) as programs:
        try:
            return _decide([program for _, program in programs], options)
        except (HarnessError, Missing) as error:
            print(f"not compared: {error}")
            return 2


def _decide(programs: Sequence[TrainingProgram], options: argparse.Namespace) -> int:
    from harness.history import paired_losses  # imports torch, as above

    print(f"Is the loss after {options.steps} steps worse by more than {options.worse:g}%?")
    seconds = -time.monotonic()
    pilot = [paired_losses.pair_of(programs, number, options.steps) for number in range(paired_losses.PILOT)]
    seconds += time.monotonic()
    level = statistics.fmean(old for old, _ in pilot)
    worse = options.worse / 100 * level
    plan = paired_losses.plan([new - old for old, new in pilot], worse, options.pairs)
    print(
        f"pilot  {len(pilot)} pairs, which do not count: old {level:.4f} nats, differences at most {plan.scatter:.2g} "
        f"apart (a bound on their standard deviation)\n"
        f"plan   {plan.pairs} pairs: if the two are equal, {plan.power:.0%} likely to show that it is worse by less "
        f"than {worse:.2g} nats; about {plan.pairs * seconds / len(pilot):.0f} s",
        flush=True,
    )
    differences = []
    for number in range(len(pilot), len(pilot) + plan.pairs):
        old, new = paired_losses.pair_of(programs, number, options.steps)
        differences.append(new - old)
        seed = paired_losses.FIRST_SEED + number
        print(f"seed {seed}  old {old:.4f}  new {new:.4f}  {new - old:+.4f}", flush=True)
    found = paired_losses.decide(differences, worse)
    verdict = {
        "not worse": f"not worse by more than {options.worse:g}%",
        "worse": f"WORSE by more than {options.worse:g}%",
        "not decided": f"NOT DECIDED if it is worse by more than {options.worse:g}%",
    }[found.kind]
    print(
        f"{verdict}: {found.mean:+.4f} nats [{found.low:+.4f}, {found.high:+.4f}], {found.mean / level:+.2%} of the "
        f"old loss, over {plan.pairs} pairs; each bound is right 19 times in 20"
    )
    if found.kind == "not decided":
        more = "the pairs scatter more than the pilot did" if plan.power >= paired_losses.POWER else "give more --pairs"
        print(f"  {more}, or ask for a larger --worse")
    return {"not worse": 0, "worse": 1, "not decided": 3}[found.kind]


@contextlib.contextmanager
def _programs(
    repository: Path, options: argparse.Namespace, new: str, *, apart: bool = False
) -> Iterator[list[tuple[str, TrainingProgram]]]:
    """Yield both revisions with their programs; `apart` if both run at the same time."""
    from harness.training.child_processes import ChildProcesses  # imports torch, as above
    from harness.training.program import TrainingProgram

    within = Path.cwd().resolve().relative_to(repository)
    with contextlib.ExitStack() as stack:
        programs = []
        for revision, flags in ((options.old, options.old_flags), (new, options.new_flags)):
            tree = stack.enter_context(_tree(repository, revision))
            processes = None
            if apart:
                processes = ChildProcesses()
                stack.callback(processes.close)
            with contextlib.chdir(tree / within):  # a program is named from there
                programs.append((revision, TrainingProgram(f"{options.trainer} {flags}", processes=processes)))
            stack.callback(programs[-1][1].close)
        _leave_what_changed(*(program for _, program in programs))
        yield programs


def _leave_what_changed(old: TrainingProgram, new: TrainingProgram) -> None:
    """Leave the settings in which two programs differ to the programs, and print what is left and what is not."""
    from harness.training.rehearsals import LEFT_IF_CHANGED, SMALL  # imports torch, as above
    from harness.training.setting_words import WORDS

    before, after = old.settings.own, new.settings.own
    changed = [word for word in before if word in after and before[word] != after[word]]
    for word in changed:
        how = "left as it is" if word in LEFT_IF_CHANGED else f"{SMALL.get(word)!r} in both here, and so not compared"
        print(f"{WORDS[word].what}: {before[word]!r} before, {after[word]!r} after: {how}")
    for program in (old, new):
        program.leave(LEFT_IF_CHANGED.intersection(changed))


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
