"""Two revisions of a subject at the same work, each in a process of its own and taking turns; which commit it was."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.bench.comparison import AGAIN, Arm, Comparison, Measured, Verification, Work, measure
from harness.bench.statistics import Ratio
from harness.core.errors import HarnessError, MissingResource
from harness.core.sizes import SIZES
from harness.history.bisect_worker import Job, WorkerSettings, command

if TYPE_CHECKING:
    from torch import Tensor

WORKING_TREE = "."
OLD, NEW = "old", "new"
# Threads of OpenMP spin when their work is done, and would do so in the other revision's block: 2.4 ms at most,
# measured as processor time of an idle process (libgomp, torch 2.13).
SETTLE_SECONDS = 0.005


# Revisions.


@contextlib.contextmanager
def checked_out(repository: Path, revision: str) -> Iterator[Path]:
    """While open, the files of a revision in a folder; of `.`, the repository's own with its uncommitted changes."""
    if revision == WORKING_TREE:
        yield repository
        return
    commit = resolve(repository, revision)
    with tempfile.TemporaryDirectory(prefix="gpt-harness-") as folder:
        tree = Path(folder) / "tree"
        try:
            # No hooks: a checkout to read is not a change of branch.
            git(repository, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", str(tree), commit)
            yield tree
        finally:
            git(repository, "worktree", "remove", "--force", str(tree), check=False)


def toplevel(folder: Path) -> Path:
    """The repository that holds `folder`. Raises HarnessError where there is none."""
    return Path(git(folder, "rev-parse", "--show-toplevel"))


def resolve(repository: Path, revision: str) -> str:
    """The commit that a revision names. Raises HarnessError for none."""
    return git(repository, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")


def described(repository: Path, revision: str) -> str:
    """`22ef657 the commit's first line`."""
    if revision == WORKING_TREE:
        return "the working tree"
    return git(repository, "log", "-1", "--format=%h %s", resolve(repository, revision))


def between(repository: Path, old: str, new: str) -> list[str]:
    """The commits after `old` up to `new`, oldest first, along first parents. Raises HarnessError where none are."""
    if WORKING_TREE in (old, new):
        raise HarnessError("--bisect goes through commits; expected two of them, and the working tree is none")
    ends = (resolve(repository, old), resolve(repository, new))
    found = git(repository, "rev-list", "--first-parent", "--reverse", f"{ends[0]}..{ends[1]}").split()
    if not found:
        raise HarnessError(f"no commit leads from {old} to {new}; expected the older revision first")
    return found


def git(folder: Path, *arguments: str, check: bool = True) -> str:
    """What git answers. Raises HarnessError, with its own words, when it fails."""
    answer = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
    if check and answer.returncode != 0:
        told = answer.stderr.strip().splitlines()[-1:] or ["it names no commit"]
        raise HarnessError(f"git {' '.join(arguments)}: {told[0]}")
    return answer.stdout.strip()


# Processes.


class Clock:
    """Goes on by what the workers measured, and stands still while lines go to and fro."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        """Seconds of measuring so far."""
        return self.now


class Process:
    """A revision's worker, seen from here. It ends with its standard input, whatever becomes of this process."""

    def __init__(self, settings: WorkerSettings, folder: Path, scratch: Path) -> None:
        self._errors = (scratch / f"{time.monotonic_ns()}.stderr").open("w+", encoding="utf-8", errors="replace")
        # A session of its own: Ctrl-C is for this process, which then ends them in order.
        self._process = subprocess.Popen(
            command(settings), cwd=folder, text=True, start_new_session=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip

    def ask(self, do: str, **details: Any) -> dict[str, Any]:
        """Have something done. Raises MissingResource for what is not to be had, HarnessError for what went wrong."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"do": do, **details}) + "\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            self._errors.seek(0)
            raise HarnessError(f"the process died at '{do}': {self._errors.read().strip()[-300:] or 'without a word'}")
        told: dict[str, Any] = json.loads(line)
        if "missing" in told:
            raise MissingResource(told["missing"])
        if "error" in told:
            raise HarnessError(told["error"])
        return told

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with self._process:  # its pipes are closed
            self._errors.close()


@contextlib.contextmanager
def workers(trees: Mapping[str, Path], settings: WorkerSettings, within: Path) -> Iterator[dict[str, Process]]:
    """While open, a process for each tree, in the tree's folder `within`; all import at the same time."""
    with tempfile.TemporaryDirectory(prefix="gpt-harness-") as scratch, contextlib.ExitStack() as stack:
        started = {}
        for name, tree in trees.items():
            folder = tree / within
            if not folder.is_dir():
                raise HarnessError(f"the {name} revision has no folder {within}")
            started[name] = Process(dataclasses.replace(settings, tree=str(tree)), folder, Path(scratch))
            stack.callback(started[name].close)
        yield started


def proxy(process: Process, job: Job, clock: Clock) -> Work:
    """A job's work in another process, such that `clock` sees the seconds that were measured there."""
    told = process.ask("build", **dataclasses.asdict(job))

    def call() -> None:
        clock.now += process.ask("call")["seconds"]

    def prepare() -> None:
        begun = time.perf_counter()
        time.sleep(SETTLE_SECONDS)
        process.ask("prepare")
        clock.now += time.perf_counter() - begun

    def answer() -> dict[str, Tensor]:
        from safetensors.torch import load_file

        with tempfile.TemporaryDirectory(prefix="gpt-harness-") as folder:
            path = Path(folder) / "answer.safetensors"
            process.ask("answer", path=str(path))
            return load_file(path)

    return Work(call=call, answer=answer, prepare=prepare, tokens=told["tokens"], computes=told["computes"])


# Measuring.


@dataclass
class SameWork:
    """Judges a revision's answer by the old one's: what is farther from it than rounding is not the same work."""

    size: str
    _old: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """The verdict on one revision; the old one's must be asked for first."""
        answer = work.answer()
        if not all(tensor.isfinite().all() for tensor in answer.values()):
            return Verification("fail", "the answer has NaN or infinity in it")
        if name == OLD:
            self._old = answer
            return Verification("pass", "the answer that the others are held against")
        error = max((_distance(answer[key], old) if key in answer else math.inf for key, old in self._old.items()),
                    default=math.inf)  # fmt: skip
        allowed = allowed_error(self.size, work.computes)
        told = f"relative error {error:.1e} against the old revision's answer"
        if error > allowed:
            return Verification("fail", f"not the same work: {told}; at most {allowed:.1e} is rounding", error=error)
        return Verification("pass", told, error=error)


def _distance(answer: Tensor, old: Tensor) -> float:
    from harness.bench.arms.truth import relative_error

    if answer.shape != old.shape:
        return math.inf
    if not old.is_floating_point():
        return 0.0 if bool((answer == old).all()) else math.inf
    wide = (1, -1) if old.dim() < 2 else old.shape
    return relative_error(answer.reshape(wide), old.reshape(wide).double())


def allowed_error(size: str, computes: str) -> float:
    """How far two right revisions may be apart.

    In float32 as far as after a step of training, which is the most of any work; a fault is off by 8e-4 or more. In
    coarser types by four roundings (weight, input, product, sum with the stream) of each of a model's products.
    """
    import torch

    from harness.bench.arms.truth import training_bound

    if computes in ("float32", "float64"):
        return training_bound(SIZES[size])
    coarse = getattr(torch, computes, torch.bfloat16)
    unit = torch.finfo(coarse if coarse.is_floating_point else torch.bfloat16).eps / 2
    return float(unit * math.sqrt(4 * (4 * SIZES[size].layers + 1)))


def measure_revisions(processes: Mapping[str, Process], job: Job, *, size: str, seconds: float) -> Measured:
    """The job in each process, block by block in turn, for about `seconds` of work. Twins are named `old-again`."""
    clock = Clock()
    arms = tuple(
        Arm(name, lambda process=process: proxy(process, job, clock), OLD if name.endswith(AGAIN) else None)  # type: ignore[misc]
        for name, process in processes.items()
    )
    comparison = Comparison(
        name=f"{job.comparison} ({job.arm})", title=f"Two revisions: {job.label}", metric=job.metric, control=OLD,
        arms=arms, verify=SameWork(size), axis=job.axis, point=job.point,
    )  # fmt: skip
    return measure(comparison, seconds=seconds, clock=clock)


# Going through commits.


@dataclass(frozen=True)
class Culprit:
    """The first commit that has the change; `suspects` could not be judged, and may have been it instead."""

    commit: str
    suspects: Sequence[str]


def halve(commits: Sequence[str], has_changed: Callable[[str], bool | None]) -> Culprit:
    """Between an unchanged revision and the last of `commits`, which has changed; None is 'cannot be judged'."""
    before, after = -1, len(commits) - 1
    unknown: set[int] = set()
    while candidates := [index for index in range(before + 1, after) if index not in unknown]:
        middle = candidates[len(candidates) // 2]
        changed = has_changed(commits[middle])
        if changed is None:
            unknown.add(middle)
        elif changed:
            after = middle
        else:
            before = middle
    return Culprit(commits[after], [commits[index] for index in sorted(unknown) if before < index < after])


def side_of(ratio: Ratio, whole: Ratio) -> bool | None:
    """Whether a revision's ratio to the oldest is nearer to the whole change than to none; None if noise hides it."""
    half = math.sqrt(whole.ratio)
    if ratio.low <= half <= ratio.high:
        return None
    return (ratio.ratio > half) == (whole.ratio > 1)
