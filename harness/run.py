"""The pure core: run one check on one subject and get a record. Knows neither pytest nor TOML."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from harness.errors import HarnessError, Missing
from harness.expect import judge
from harness.measure import Measure, Reading, measures
from harness.subject import Subject
from harness.suite import Check

Verdict = Literal["pass", "fail", "error", "skip"]


@dataclass(frozen=True)
class Record:
    """One result: what was asked, what was found, and the verdict. `as_row` gives it as JSON-ready data."""

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


def run(check: Check, subject: Subject) -> Record:
    """Judge `subject` by `check`. Whatever the subject does short of Ctrl-C becomes a verdict, never an exception."""
    measure = measures()[check.measure]
    started = time.perf_counter()

    def record(verdict: Verdict, message: str, **what: Any) -> Record:
        return Record(check, subject.name, verdict, message, time.perf_counter() - started, **what)

    if not isinstance(subject, measure.needs):
        return record("skip", f"{subject.name} has no ability '{measure.needs.__name__}': {_summary(measure.needs)}")
    try:
        with _globals_restored():
            reading = measure.function(subject, **check.parameters)
    except Missing as missing:
        return record("skip", str(missing))
    except HarnessError as error:
        return record("error", str(error))
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a subject raises what it likes: SystemExit, pytest's own skip, a class of its own
        return record("error", _told(error), details={"traceback": _traceback(error)})
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


@contextlib.contextmanager
def _globals_restored() -> Iterator[None]:
    """A subject may change PyTorch's global state; the next check must not notice."""
    device, dtype, threads, deterministic = (
        torch.get_default_device(),
        torch.get_default_dtype(),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )
    try:
        with torch.random.fork_rng(), torch.enable_grad():
            torch.manual_seed(0)
            yield
    finally:
        if torch.get_default_device() != device:
            torch.set_default_device(device)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(True)
        torch.use_deterministic_algorithms(deterministic)
        if torch.get_num_threads() != threads:
            torch.set_num_threads(threads)


def _told(error: BaseException) -> str:
    """An exception in one line, with the place in the code that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    place = f" at {last.filename}:{last.lineno} in {last.name}" if last else ""
    return f"{type(error).__name__}: {' '.join(_text(error).split())[:500]}{place}"


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as second:
        return f"(its message cannot be shown: {type(second).__name__})"


def _traceback(error: BaseException) -> str:
    return "".join(traceback.format_tb(error.__traceback__))[-4000:]


def _summary(protocol: type) -> str:
    return (protocol.__doc__ or "").strip().splitlines()[0].rstrip(".")
