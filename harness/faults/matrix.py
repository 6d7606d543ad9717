"""The kill matrix: every fault put into the specimen, judged by every check of the debug size, and diagnosed."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

from harness.core.captured_output import CapturedOutput, captured_output
from harness.core.errors import HarnessError
from harness.core.record_files import Row
from harness.core.sizes import SIZES
from harness.diagnosis import diagnose
from harness.faults.catalogue import Fault
from harness.faults.coverage import check_key, lines_reached
from harness.judging.run_check import run
from harness.measures.all_measures import measures
from harness.subjects.adapters import adapt
from harness.subjects.protocols import Subject
from harness.suites.check import Check
from harness.suites.record import Record
from harness.suites.suite_file import read_suite
from harness.suites.suite_order import place_of

RED = ("fail", "error")
# Suites whose cases the diagnosis distinguishes (top-k and top-p, say): a check's other cases run after a red one too.
SUITES_WITH_ALL_CASES = ("structure", "generation", "loading", "loss")
# Arms are several implementations of the same work; the specimen has one, and a fault is in all of its arms. Claims are
# the lessons' figures: what they measure of a subject, the other suites judge more sharply.
SUITES_NOT_RUN = ("arms", "claims")


def debug_checks(folder: Path) -> list[Check]:
    """Return every check of the suites in `folder` that runs at a debug size, from coarse to fine."""
    suites = {path.stem: path for path in folder.glob("*.toml") if path.stem not in SUITES_NOT_RUN}
    if not suites:
        raise HarnessError(f"no suites in {folder.resolve()}; expected *.toml, as in verifications/")
    ordered = sorted(suites, key=lambda name: (place_of(name), name))
    checks = [check for name in ordered for check in read_suite(suites[name], measures()).checks]
    return [check for check in checks if str(check.parameters.get("size", "")).startswith("debug")]


def judge_faults(faults: Sequence[Fault], *, suites: Path, processes: int = 2) -> Iterator[Row]:
    """Judge the faults in worker processes and yield a row for each, in the order in which they finish."""
    # Spawned, not forked: PyTorch's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(suites,)) as pool:
        of_gpts = any(not fault.suite for fault in faults)  # a technique's faults are judged by their suite alone
        reached = pool.submit(_lines_reached).result() if of_gpts else {}
        for done in as_completed([pool.submit(_judge_fault, fault, reached) for fault in faults]):
            yield done.result()


def judge_fault(
    fault: Fault,
    checks: Sequence[Check],
    *,
    reached: Mapping[str, frozenset[int]] | None = None,
    diagnosing: bool = True,
) -> Row:
    """Judge and diagnose the specimen with the fault, as a user's file is, and return a JSON-ready row.

    Checks that do not run the changed lines are left out (`reached`, see `lines_reached`; None: all run), and the
    cases of most checks after the first red one.
    """
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{fault.id.replace('-', '_')}.py")
        file.write_text(fault.source_text(), encoding="utf-8")
        subject = adapt(f"{file}:GPT")
        records = _records(subject, _checks_of(fault, checks, reached))
        judged = time.perf_counter()
        killed = any(record.verdict in RED for record in records)
        findings = _findings(subject, records) if killed and diagnosing else []
    first = findings[0] if findings else {"where": "", "fault": "", "cause": ""}
    return {
        "kind": "fault",
        "id": fault.id,
        "control": fault.is_control,
        "group": fault.group,
        "family": fault.kind,
        "what": fault.what,
        "source": fault.source,
        "where": list(fault.where),
        "layer": fault.layer,
        "checks": [row_of_check(record) for record in records],
        "killed": killed,
        "findings": findings,
        "localised": fault.localised_by(str(first["where"]), str(first["fault"]), SIZES["debug"].layers),
        "named": fault.named_by(str(first["fault"]), str(first["cause"])),
        "seconds": judged - started,
        "diagnosis_seconds": time.perf_counter() - judged,
    }


def row_of_check(record: Record) -> Row:
    """Return what the matrix has of one check."""
    return {
        "suite": record.check.suite,
        "check": record.check.name,
        "id": record.check.id,
        "verdict": record.verdict,
        "message": record.message if record.verdict in RED else "",
        "seconds": record.seconds,
    }


def _checks_of(fault: Fault, checks: Sequence[Check], reached: Mapping[str, frozenset[int]] | None) -> list[Check]:
    """Return the checks of its technique; else those that run a changed line, all if no line is known."""
    if fault.suite:
        return [check for check in checks if check.suite == fault.suite]
    changed = fault.lines()
    if reached is None or not changed:
        return list(checks)
    return [check for check in checks if changed & (reached[""] | reached.get(check_key(check), changed))]


def _records(subject: Subject, checks: Sequence[Check]) -> list[Record]:
    """Return the records of the checks, without the cases after a check's first red one."""
    records: list[Record] = []
    red: set[str] = set()
    for check in checks:
        if check_key(check) in red:
            continue
        record = run(check, subject)
        records.append(record)
        if record.verdict in RED and check.suite not in SUITES_WITH_ALL_CASES:
            red.add(check_key(check))
    return records


def _findings(subject: Subject, records: Sequence[Record]) -> list[dict[str, Any]]:
    try:
        with captured_output(CapturedOutput()):
            return [dict(finding.as_row()) for finding in diagnose(subject, records).findings]
    except Exception as error:  # a bug in the diagnosis is a row of the matrix and does not end it
        return [{"where": "", "fault": "", "cause": f"the diagnosis broke: {error!r}", "text": traceback.format_exc()}]


_checks: list[Check] = []  # of a worker process


def _start_worker(suites: Path) -> None:
    """Prepare a worker process: one thread, and the checks read once."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _checks[:] = debug_checks(suites)


def _end_with_parent() -> None:
    """End this worker when the process that started it ends, even if it was killed: nobody reads the results then."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _lines_reached() -> dict[str, frozenset[int]]:
    return lines_reached(_checks)


def _judge_fault(fault: Fault, reached: Mapping[str, frozenset[int]]) -> Row:
    return judge_fault(fault, _checks, reached=reached)
