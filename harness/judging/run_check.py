"""The pure core: run one check on one subject and get a record. Knows neither pytest nor TOML."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.captured_output import KEPT, Output, captured_output
from harness.core.error_text import describe_error, error_place
from harness.core.errors import HarnessError, Missing
from harness.core.global_state import isolated_global_state
from harness.core.limits import Limits, TooLong, alarm
from harness.core.process_exit import subject_at_work
from harness.subjects.model import Subject
from harness.suites.expectations import judge
from harness.suites.measure_registry import Measure, Reading, measures
from harness.suites.suite_file import Check

Verdict = Literal["pass", "fail", "error", "skip"]


@dataclass(frozen=True)
class Record:
    """One result: what was asked, what was found, and the verdict. `as_row` gives it as JSON-ready data.

    `declared` is the reason of a deviation that its author has declared: the verdict stays what it is.
    """

    check: Check
    subject: str
    verdict: Verdict
    message: str
    seconds: float
    value: Any = None
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    found: str = ""
    expected: str = ""
    where: tuple[str, ...] = ()
    declared: str = ""

    def as_row(self, *, id: str = "", rerun: str = "") -> dict[str, Any]:
        """The record as one JSON line holds it."""
        return {
            "kind": "record",
            "id": id or f"{self.check.file}::{self.check.id}",
            "suite": self.check.suite,
            "check": self.check.name,
            "measure": self.check.measure,
            "parameters": dict(self.check.parameters),
            "subject": self.subject,
            "verdict": self.verdict,
            **({"declared": self.declared} if self.declared else {}),
            "message": self.message,
            "value": self.value,
            "unit": self.unit,
            "expected": dict(self.check.expected),
            "expected_text": self.expected,
            "found": self.found,
            "where": list(self.where),
            "why": self.check.why,
            "source": self.check.source,
            "rerun": rerun,
            "seconds": self.seconds,
            "details": self.details,
        }

    @classmethod
    def of_row(cls, check: Check, row: Mapping[str, Any]) -> Record:
        """The inverse of `as_row`, for a record that comes from another process."""
        same = ("subject", "verdict", "message", "seconds", "value", "unit", "details", "found")
        return cls(
            check,
            **{key: row[key] for key in same},
            expected=row["expected_text"],
            where=tuple(row["where"]),
            declared=row.get("declared", ""),
        )


def run(check: Check, subject: Subject, *, limits: Limits | None = None, echo: bool = False) -> Record:
    """Judge `subject` by `check`. Whatever the subject does short of Ctrl-C becomes a verdict, never an exception.

    `limits.seconds` ends a subject that hangs. What it prints is taken in, unless `echo` is set.
    """
    measure, limits = measures()[check.measure], limits or Limits()
    started = time.perf_counter()
    output, changed = Output(), dict[str, str]()

    def record(verdict: Verdict, message: str, details: Mapping[str, Any] | None = None, **what: Any) -> Record:
        told = dict(details or {})
        if changed:
            told["changed"] = changed
        if output.size > KEPT or (output.size and verdict not in ("pass", "skip")):
            told["output"] = output.as_row()
        return Record(check, subject.name, verdict, message, time.perf_counter() - started, details=told, **what)

    def error(message: str, cause: BaseException) -> Record:
        if changed:
            message += "; on the way it changed " + ", ".join(f"{name} ({how})" for name, how in changed.items())
        details = {
            "traceback": _traceback(cause),
            "raised": {"type": type(cause).__name__, "place": error_place(cause)},
        }
        return record("error", message, details)

    if not isinstance(subject, measure.needs):
        return record("skip", f"{subject.name} has no ability '{measure.needs.__name__}': {_summary(measure.needs)}")
    try:
        with (
            isolated_global_state(changed),
            subject_at_work(),
            contextlib.nullcontext() if echo else captured_output(output),
            alarm(limits.seconds),
        ):
            reading = measure.function(subject, **check.parameters)
    except Missing as missing:
        return record("skip", str(missing))
    except HarnessError as mistake:
        return record("error", str(mistake))
    except KeyboardInterrupt:
        raise
    except TooLong as late:
        return error(f"did not answer within {limits.seconds:g} s: it was at {error_place(late)}", late)
    except BaseException as raised:  # a subject raises what it likes: SystemExit, pytest's own skip, a class of its own
        return error(describe_error(raised), raised)
    return _judged(check, measure, reading, record)


def _judged(check: Check, measure: Measure, reading: Reading, record: Any) -> Record:
    dtype = check.parameters.get("dtype") or (
        measure.parameters["dtype"].default if "dtype" in measure.parameters else None
    )
    verdict = judge(reading, check.expected, dtype=dtype)
    return record(  # type: ignore[no-any-return]
        "pass" if verdict.passed else "fail",
        "" if verdict.passed else f"found {verdict.found}; expected {verdict.expected}",
        value=reading.value if not isinstance(reading.value, Mapping) else dict(reading.value),
        unit=reading.unit,
        details=reading.details,
        found=verdict.found,
        expected=verdict.expected,
        where=tuple(verdict.where),
    )


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))[-4000:]


def _summary(protocol: type) -> str:
    return (protocol.__doc__ or "").strip().splitlines()[0].rstrip(".")
