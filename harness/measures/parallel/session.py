"""The ranks of a subject, started once for all checks, and their parts put together to whole parameters."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from harness.core.errors import MissingAbility, MissingResource
from harness.core.rank_processes import Answer, Answers, Failure, Question, answers_of_ranks
from harness.core.seeds import seeded
from harness.core.shared_folder import SharedFolder
from harness.measures.parallel import experiments
from harness.measures.parallel.global_batch import ACCUMULATED, PLAIN
from harness.measures.parallel.rank_model import build
from harness.subjects.protocols import Parallelizes

RANKS = 2
RUN = f"{os.getpid()} {time.time_ns()}"  # of this process and those forked from it
# What torch says of a wrapper that has no form for CPUs, as FullyShardedDataParallel (FSDP1), or of a device or NCCL.
NEEDS_A_DEVICE = re.compile(r"non-CPU accelerator|no NVIDIA driver|not compiled with CUDA|NCCL", re.IGNORECASE)

Parts = Sequence[Sequence[Tensor]]  # by rank, then by parameter of the rank


class RanksFailed(Exception):  # noqa: N818 - it is a reading, not an error
    """A question to the ranks has no answer, because of the subject."""

    def __init__(self, question: str, failure: Failure) -> None:
        super().__init__(failure.what)
        self.question, self.failure = question, failure


@dataclass
class Session:
    """What the ranks of one kind of parallelism answered, and what one process computes."""

    subject: Parallelizes
    kind: str
    size: str
    ranks: int = RANKS
    folder: Path = field(init=False)
    _one: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # The same in the second process that the checks may be shared with: what one has asked, the other need not ask.
        key = f"{RUN} {self.subject.name} {id(self.subject)} {self.kind} {self.size} {seeded(0)}"
        self._shared = SharedFolder(hashlib.sha256(key.encode()).hexdigest()[:24])
        self.folder = self._shared.path

    @functools.cached_property
    def _answers(self) -> Answers:
        return self._asked_once("session", self.ranks, experiments.questions(self.subject, self.kind, self.size))

    def _asked_once(self, name: str, ranks: int, questions: Mapping[str, Question]) -> Answers:
        """Return the ranks' answers; if another process asks them, wait for it, and read what it was told."""
        with open(self.folder / f"{name}.lock", "w", encoding="utf-8") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # released when its process ends, however it ends
            path = self.folder / f"{name}.pt"
            if path.exists():
                given, failed = torch.load(path, weights_only=True)
                return Answers(given, {question: Failure(*each) for question, each in failed.items()})
            found = answers_of_ranks(questions, ranks=ranks, folder=self.folder)
            failed = {question: (each.what, each.line, each.output) for question, each in found.failed.items()}
            part = path.with_suffix(".part")  # so that a disk that is full leaves no file that looks complete
            torch.save((found.given, failed), part)
            part.replace(path)
            return found

    def answers(self, question: str) -> list[Answer]:
        """Return the answer of each rank. Raises RanksFailed, or MissingAbility if the subject cannot be asked it."""
        found = self._answers
        if question in found.failed:
            self._raise(question, found.failed[question])
        if question not in found.given:
            if question in experiments.NEEDS:
                self.subject.parallel_program.function(experiments.NEEDS[question])
            raise MissingAbility(f"{question!r} cannot be asked of {self.kind} ranks of {self.subject.name}")
        return found.given[question]

    @staticmethod
    def _raise(question: str, failure: Failure) -> NoReturn:
        if NEEDS_A_DEVICE.search(failure.what):
            raise MissingResource(
                f"the ranks of a check are CPU processes, and the program needs a GPU: {failure.what}"
            )
        raise RanksFailed(question, failure)

    def read_by(self, ranks: int) -> list[Answer]:
        """Return the answers of other ranks that read this session's checkpoint."""
        self.answers("save")
        self.subject.parallel_program.function("load")
        load = functools.partial(experiments.load, self.subject, self.kind, self.size)
        layout = functools.partial(experiments.layout, self.subject, self.kind, self.size)
        found = self._asked_once(f"read by {ranks}", ranks, {"layout": layout, "load": load})
        for question, failure in found.failed.items():
            self._raise(question, failure)
        return [{**a, **b} for a, b in zip(found.given["layout"], found.given["load"], strict=True)]

    def one_process(self, case: str, dtype: str) -> dict[str, Any]:
        """Return what one process computes on the global batch."""
        if (case, dtype) not in self._one:
            model = build(self.subject, self.size, dtype)
            clipped = experiments.clips(self.subject.parallel_program, case)
            self._one[case, dtype] = experiments.in_one_process(model, self.size, case, clipped=clipped)
        return self._one[case, dtype]

    @functools.cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every parameter of one process, by name; a shared one comes once."""
        module = build(self.subject, self.size, "float64").module
        return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}

    @property
    def trained(self) -> str:
        """The case in which the weights change: by the program's own gradients if it has a function for them."""
        return ACCUMULATED if "gradients" in self.subject.parallel_program.functions else PLAIN

    @property
    def elements(self) -> int:
        """The number of elements of all parameters."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values())

    @functools.cached_property
    def layout(self) -> list[list[Tensor]]:
        """The numbers of the elements that each rank has, in each of its parameters."""
        return [list(answer["numbers"]) for answer in self.answers("layout")]

    def whole(self, parts: Parts, layout: Parts | None = None) -> list[dict[str, Tensor]]:
        """Return each rank's view of whole parameters by name: its own parts, and the others' for what it has not.

        What no rank has is NaN.
        """
        layout = self.layout if layout is None else layout
        common = torch.full((self.elements + 1,), float("nan"), dtype=torch.float64)
        for numbers, own in reversed(list(zip(layout, parts, strict=True))):
            _write(common, numbers, own)
        views = []
        for numbers, own in zip(layout, parts, strict=True):
            view = common.clone()
            _write(view, numbers, own)
            views.append(self._by_name(view))
        return views

    def apart(self, parts: Parts) -> int:
        """Return how many elements that several ranks have differ between two of them, bitwise."""
        lowest = torch.full((self.elements + 1,), float("inf"), dtype=torch.float64)
        highest = -lowest
        for numbers, own in zip(self.layout, parts, strict=True):
            for places, values in zip(numbers, own, strict=True):
                flat, given = places.flatten(), values.flatten().double()
                lowest[flat] = torch.minimum(lowest[flat], given)  # NaN stays NaN, and compares as different
                highest[flat] = torch.maximum(highest[flat], given)
        seen = torch.zeros(self.elements + 1, dtype=torch.bool)
        for numbers in self.layout:
            for places in numbers:
                seen[places.flatten()] = True
        return int((seen & ~(lowest == highest))[1:].sum())

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = flat[1:].split([torch.Size(shape).numel() for shape in self.shapes.values()])
        return {name: piece.view(shape) for (name, shape), piece in zip(self.shapes.items(), pieces, strict=True)}


def _write(flat: Tensor, numbers: Sequence[Tensor], own: Sequence[Tensor]) -> None:
    for places, values in zip(numbers, own, strict=True):
        flat[places.flatten().clamp(0, len(flat) - 1)] = values.flatten().double()


@functools.lru_cache(maxsize=12)
def _session(subject: Parallelizes, kind: str, size: str, seed: int) -> Session:
    return Session(subject, kind, size)


def session(subject: Parallelizes, kind: str, size: str) -> Session:
    """Return the session of the ranks. Raises MissingAbility if the subject has no function for the kind."""
    subject.parallel_program.function(kind)
    return _session(subject, kind, size, seeded(0))
