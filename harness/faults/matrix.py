"""The kill matrix: every fault put into the specimen, judged by every check of the debug size, and diagnosed."""

from __future__ import annotations

import gc
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from harness.core.captured_output import Output, captured_output
from harness.core.errors import HarnessError
from harness.core.sizes import SIZES
from harness.faults.catalogue import SPECIMEN, Fault
from harness.oracle import model_cache
from harness.suites.suite_file import Check, read_suite

if TYPE_CHECKING:
    from harness.judging.run_check import Record

RED = ("fail", "error")
# Suites whose cases are told apart by the diagnosis (top-k beside top-p): they are run after a red one too.
CASES_THAT_TELL = ("structure", "generation", "loading", "loss")
# Coarse before fine: what needs least of the subject comes first, and within a suite its own order counts. A check
# stays in a suite if it kills a fault that no check before it kills, or says why it stays (`keep_reason` of a [[check]]).
COARSE_TO_FINE = ("structure", "behaviour", "initialisation", "attention", "loss", "interface", "parity", "precision",
                  "generation", "loading")  # fmt: skip
# The arms are ways to run a right subject; the specimen has one way, and a fault in it is in all of them.
NOT_JUDGED_BY = ("arms",)


def debug_checks(folder: Path) -> list[Check]:
    """Every check of the suites in `folder` that runs at a small size, from coarse to fine."""
    suites = {path.stem: path for path in folder.glob("*.toml") if path.stem not in NOT_JUDGED_BY}
    if not suites:
        raise HarnessError(f"no suites in {folder.resolve()}; expected *.toml, as in verifications/")
    ordered = sorted(suites, key=lambda name: (COARSE_TO_FINE.index(name) if name in COARSE_TO_FINE else 99, name))
    checks = [check for name in ordered for check in read_suite(suites[name]).checks]
    return [check for check in checks if str(check.parameters.get("size", "")).startswith("debug")]


def judge_faults(faults: Sequence[Fault], *, suites: Path, processes: int = 2) -> Iterator[dict[str, Any]]:
    """A row for each fault, as they are done."""
    # Spawned, not forked: threads of PyTorch do not survive a fork.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start, initargs=(suites,)) as pool:
        reached = pool.submit(_reached).result()
        for done in as_completed([pool.submit(_judge, fault, reached) for fault in faults]):
            yield done.result()


def lines_reached(checks: Sequence[Check]) -> dict[str, frozenset[int]]:
    """The lines of the right specimen that each check runs, by `suite::check`; under "" those that its import runs.

    A fault in lines that a check does not run cannot change what the check finds: it need not be run. The cases of a
    check share what one of them has computed, so that the lines of all are those of each.
    """
    from harness.judging.run_check import run
    from harness.subjects.adapters import adapt

    lines: set[int] = set()

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != str(SPECIMEN):
            return None
        lines.add(frame.f_lineno)
        return trace

    reached: dict[str, frozenset[int]] = {}
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        subject = adapt(f"{SPECIMEN}:GPT")
        reached[""] = frozenset(lines)
        for check in checks:
            lines.clear()
            model_cache.clear()  # what checks share is made by each
            run(check, subject)
            reached[key(check)] = reached.get(key(check), frozenset()) | lines
    finally:
        sys.settrace(before)
    return reached


def key(check: Check) -> str:
    """A check, whatever its case."""
    return f"{check.suite}::{check.name}"


def judge_fault(
    fault: Fault,
    checks: Sequence[Check],
    *,
    reached: Mapping[str, frozenset[int]] | None = None,
    diagnosing: bool = True,
) -> dict[str, Any]:
    """The specimen with the fault in it, judged and diagnosed as a user's file is: a JSON-ready row.

    Left out: checks that do not run the changed lines, and of most checks the cases after the first that is red.
    """
    from harness.judging.run_check import run
    from harness.subjects.adapters import adapt

    started = time.perf_counter()
    specimen = SPECIMEN.read_text(encoding="utf-8")
    changed = fault.lines(specimen)
    concerned = [
        check
        for check in checks
        if reached is None or not changed or changed & (reached[""] | reached.get(key(check), changed))
    ]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, f"{fault.id.replace('-', '_')}.py")
        file.write_text(fault.source_text(specimen), encoding="utf-8")
        subject = adapt(f"{file}:GPT")
        records: list[Record] = []
        for check in concerned:
            if not any(_same(check, record.check) and record.verdict in RED for record in records):
                records.append(run(check, subject))
        judged = time.perf_counter()
        killed = any(record.verdict in RED for record in records)
        findings = _diagnosed(subject, records) if killed and diagnosing else []
    first = findings[0] if findings else {"where": "", "fault": ""}
    layers = SIZES["debug"].layers
    return {
        "kind": "fault",
        "id": fault.id,
        "control": fault.is_control,
        "family": fault.kind,
        "what": fault.what,
        "source": fault.source,
        "where": list(fault.where),
        "layer": fault.layer,
        "checks": [
            {
                "suite": record.check.suite,
                "check": record.check.name,
                "id": record.check.id,
                "verdict": record.verdict,
                "message": record.message if record.verdict in RED else "",
                "seconds": record.seconds,
            }
            for record in records
        ],
        "killed": killed,
        "findings": findings,
        "localised": fault.localised_by(str(first["where"]), str(first["fault"]), layers),
        "named": fault.named_by(str(first["fault"])),
        "seconds": judged - started,
        "diagnosis_seconds": time.perf_counter() - judged,
    }


def _diagnosed(subject: Any, records: Sequence[Any]) -> list[dict[str, Any]]:
    from harness.diagnosis import diagnose

    try:
        with captured_output(Output()):
            return [dict(finding.as_row()) for finding in diagnose(subject, records).findings]
    except Exception as error:  # it must not; one that does is a row of the matrix and not its end
        return [{"where": "", "fault": "", "cause": f"the diagnosis broke: {error!r}", "text": traceback.format_exc()}]


_checks: list[Check] = []


def _start(suites: Path) -> None:
    """A worker process begins: one thread, the checks read once, and no garbage looked for in the libraries."""
    import torch
    import transformers.models.gpt2.modeling_gpt2  # noqa: F401 - imported before the freeze

    torch.set_num_threads(1)
    _checks[:] = debug_checks(suites)
    gc.collect()
    gc.freeze()
    model_cache.frozen = True


def _reached() -> dict[str, frozenset[int]]:
    return lines_reached(_checks)


def _judge(fault: Fault, reached: Mapping[str, frozenset[int]]) -> dict[str, Any]:
    return judge_fault(fault, _checks, reached=reached)


def _same(one: Check, other: Check) -> bool:
    """Whether the two are cases of one check, of which the first that is red tells all; see CASES_THAT_TELL."""
    return one.suite not in CASES_THAT_TELL and key(one) == key(other)
