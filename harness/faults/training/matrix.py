"""The kill matrix of training programs: every mistake put into its specimen, rehearsed, judged and diagnosed."""

from __future__ import annotations

import contextlib
import difflib
import multiprocessing
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch

from harness.core.record_files import Row
from harness.diagnosis.training import EVENTS, Source, diagnose_training
from harness.faults.matrix import RED, row_of_check
from harness.faults.training.changes import Trainer
from harness.judging.run_check import run
from harness.measures.all_measures import measures
from harness.measures.training.judged_rehearsals import rehearsals_of
from harness.suites.check import Check
from harness.suites.suite_file import read_suite
from harness.training.program import TrainingProgram
from harness.training.protocols import needs_a_trainer

SUITES_OF_TRAINING = ("data", "training")
NEAR = 2  # lines: a finding so close to a change is at its place


def training_checks(folder: Path) -> list[Check]:
    """Return every check of the suites in `folder` that judges a training program, in the order of a run."""
    known = measures()
    paths = (folder / f"{name}.toml" for name in SUITES_OF_TRAINING)
    checks = [check for path in paths for check in read_suite(path, known).checks]
    return [check for check in checks if needs_a_trainer(known[check.measure].needs)]


def judge_trainers(trainers: Sequence[Trainer], *, suites: Path, processes: int = 2) -> Iterator[Row]:
    """Judge programs in worker processes and yield a row for each, in the order in which they finish."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker) as pool:
        for done in as_completed([pool.submit(judge_trainer, trainer, suites) for trainer in trainers]):
            yield done.result()


def judge_trainer(trainer: Trainer, suites: Path) -> Row:
    """Judge and diagnose a specimen with a change, as a user's program is, and return a JSON-ready row.

    The checks are those of the rehearsals that the change is declared with: all that its red checks need, or a
    control's own.
    """
    started = time.perf_counter()
    checks = training_checks(suites)
    needed = set(trainer.rehearsals).union(*(rehearsals_of(c) for c in checks if f"{c.suite}::{c.id}" in trainer.red))
    # In a folder of its own, as a user's program is in the folder where its user is.
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("train.py").write_text(trainer.source_text(), encoding="utf-8")
        program = TrainingProgram("train.py")
        records = [run(check, program) for check in checks if rehearsals_of(check) <= needed]
        judged = time.perf_counter()
        source = Source(program.files, program.settings.called("steps"))
        findings = [finding.as_row() for finding in diagnose_training(program, records, source)[0].findings]
        program.close()
    first = findings[0] if findings else {"source": "", "cause": "", "where": ""}
    return {
        "kind": "fault",
        "id": trainer.id,
        "control": not trainer.red,
        "group": trainer.group,
        "family": "training",
        "what": trainer.what,
        "source": trainer.source,
        "where": [f"line {number}" for number in sorted(changed_lines(trainer))],
        "layer": None,
        "checks": [row_of_check(record) for record in records],
        "killed": any(record.verdict in RED for record in records),
        "findings": findings,
        "localised": is_near(str(first["source"]), changed_lines(trainer)),
        "named": is_named(trainer, str(first["cause"]), str(first["where"])),
        "seconds": judged - started,
        "diagnosis_seconds": time.perf_counter() - judged,
    }


def changed_lines(trainer: Trainer) -> set[int]:
    """Return the numbers of the lines of the changed program that the specimen does not have, or lacks before them."""
    old, new = trainer.specimen.read_text(encoding="utf-8").splitlines(), trainer.source_text().splitlines()
    changes = difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes()
    return {
        number
        for what, _, _, start, end in changes
        if what != "equal"
        for number in range(start + 1, max(end, start + 1) + 1)
    }


def is_near(source: str, lines: set[int]) -> bool:
    """Return True if a place, `train.py:118`, is at most NEAR lines from one of the lines."""
    number = source.rpartition(":")[2]
    return number.isdigit() and any(abs(int(number) - line) <= NEAR for line in lines)


def is_named(trainer: Trainer, cause: str, where: str) -> bool:
    """Return True if a cause says what the change is: its hint, or what its own check says of the event."""
    if trainer.hint:
        return trainer.hint in cause
    own = [EVENTS[name] for check in trainer.red if (name := check.partition("::")[2].split(",")[0]) in EVENTS]
    return any(judged.where == where and judged.says in cause for judged in own)


def _start_worker() -> None:
    torch.set_num_threads(1)
