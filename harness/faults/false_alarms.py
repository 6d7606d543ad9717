"""Right programs judged again and again, with other weights, tokens and random numbers: nothing may be red."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.record_files import Row
from harness.core.seeds import seed_of_run
from harness.faults.catalogue import Fault
from harness.faults.matrix import RED
from harness.judging.run_check import run
from harness.measures.all_measures import measures
from harness.oracle import model_cache
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Subject
from harness.suites.check import Check


def checks_like(checks: Sequence[Check], patterns: Sequence[str]) -> list[Check]:
    """Return the checks whose `suite::name` is like one of the patterns. Raises HarnessError if there are none."""
    chosen = [each for each in checks if any(fnmatch(f"{each.suite}::{each.id}", pattern) for pattern in patterns)]
    if not chosen:
        raise HarnessError(f"no check of the debug size is like {' or '.join(patterns)}; expected, say, 'dropout::*'")
    return chosen


def right_programs(controls: Sequence[Fault], others: Sequence[str], folder: Path) -> Iterator[tuple[str, Subject]]:
    """Yield the name and the subject of each right program: the controls, as files in `folder`, and the `others`."""
    for control in controls:
        file = folder / f"{control.id.replace('-', '_')}.py"
        file.write_text(control.source_text(), encoding="utf-8")
        yield control.id, adapt(f"{file}:GPT")
    for spec in others:
        yield spec, adapt(spec)


def judged_again(
    programs: Sequence[tuple[str, Subject]], checks: Sequence[Check], *, first: int, repetitions: int
) -> Iterator[Row]:
    """Yield a row for each program under each seed from `first` on; all programs under one seed, then the next seed.

    A row has the number of verdicts by kind, and the checks that were red with their messages.
    """
    for seed in range(first, first + repetitions):
        with _fresh_caches(), seed_of_run(seed):
            for name, subject in programs:
                model_cache.clear()
                yield _row(name, subject, checks, seed)


def _row(name: str, subject: Subject, checks: Sequence[Check], seed: int) -> Row:
    started = time.perf_counter()
    records = [run(_seeded(check, seed), subject) for check in checks]
    verdicts = [record.verdict for record in records]
    return {
        "kind": "repetition",
        "program": name,
        "seed": seed,
        "verdicts": {verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "flagged": [
            {"check": f"{record.check.suite}::{record.check.id}", "message": record.message}
            for record in records
            if record.verdict in RED
        ],
        "seconds": time.perf_counter() - started,
    }


def _seeded(check: Check, seed: int) -> Check:
    """Return the check with another seed of its own, if its measure takes one."""
    if "seed" not in measures()[check.measure].parameters:
        return check
    return dataclasses.replace(check, parameters={**check.parameters, "seed": seed})


@contextlib.contextmanager
def _fresh_caches() -> Iterator[None]:
    model_cache.forget()
    try:
        yield
    finally:
        model_cache.forget()
