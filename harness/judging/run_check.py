"""Run one check on one subject and return its record: the core, which knows neither pytest nor TOML."""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from harness.core.captured_output import EXCERPT, CapturedOutput, captured_output
from harness.core.devices import arithmetic_of
from harness.core.error_text import describe_error, error_location
from harness.core.errors import HarnessError, Missing
from harness.core.global_state import isolated_global_state
from harness.core.limits import Limits, TooLong, alarm
from harness.core.one_thread import one_thread
from harness.core.originals import operations_changed, replacements_of
from harness.core.process_exit import subject_at_work
from harness.core.resources import Resources
from harness.measures.all_measures import measures
from harness.subjects.protocols import Subject
from harness.suites.check import Check
from harness.suites.claim import find
from harness.suites.expectations import judge
from harness.suites.measure_registry import Measure, Reading
from harness.suites.record import Record, Verdict
from harness.training.protocols import Trains

LONGEST_TRACEBACK = 4000  # characters, from its end
# Of the error of an index out of range in a kernel: CUDA then refuses every call of this process.
LOST_DEVICE = "device-side assert"
ALONE = "with --isolate the others run in a new process"
_lost_in: list[str] = []  # the check in which that happened


def run(check: Check, subject: Subject | Trains, *, limits: Limits | None = None, echo: bool = False) -> Record:
    """Judge the subject by the check. Anything that the subject raises becomes a verdict; only Ctrl-C is raised.

    The check is an error if it takes longer than `limits.seconds`. What the subject prints is captured, unless `echo`.
    """
    measure, limits = measures()[check.measure], limits or Limits()
    started = time.perf_counter()
    output, changed = CapturedOutput(), dict[str, str]()

    def record(verdict: Verdict, message: str, details: Mapping[str, Any] | None = None, **fields: Any) -> Record:
        details = dict(details or {})
        if changed:
            details["changed"] = changed
        if output.size > EXCERPT or (output.size and verdict not in ("pass", "skip")):
            details["output"] = output.as_row()
        seconds = time.perf_counter() - started
        return Record(check, subject.name, verdict, message, seconds, details=details, **fields)

    def error(message: str, cause: BaseException) -> Record:
        if changed:
            message += "; on the way it changed " + ", ".join(f"{name} ({how})" for name, how in changed.items())
        trace = "".join(traceback.format_tb(cause.__traceback__))[-LONGEST_TRACEBACK:]
        raised = {"type": type(cause).__name__, "place": error_location(cause)}
        lost = {}
        if LOST_DEVICE in message:
            _lost_in.append(f"{check.suite}/{check.id}")
            lost = {"lost device": True}
        return record("error", message, {"traceback": trace, "raised": raised, **lost})

    if _lost_in:
        return record("error", f"not run: CUDA refuses every call after the {LOST_DEVICE} in {_lost_in[0]}; {ALONE}")
    if not isinstance(subject, measure.needs):
        return record("skip", f"{subject.name} has no ability '{measure.needs.__name__}': {_summary(measure.needs)}")
    try:
        with (
            one_thread() if is_small(check) else contextlib.nullcontext(),
            arithmetic_of(Resources.current.device),
            isolated_global_state(changed),
            replacements_of(subject.name) as replaced,
            subject_at_work(),
            contextlib.nullcontext() if echo else captured_output(output),
            alarm(limits.seconds),
        ):
            reading = _read(check, measure, subject)
    except Missing as missing:
        return record("skip", str(missing))
    except HarnessError as mistake:
        return record("error", str(mistake))
    except KeyboardInterrupt:
        raise
    except TooLong as late:
        return error(f"did not answer within {limits.seconds:g} s: it was at {error_location(late)}", late)
    except BaseException as raised:  # SystemExit, pytest's own Skipped, or any class that the subject defines
        return error(describe_error(raised), raised)
    if spoiled := [str(patch) for patch in replaced if patch.spoils_verdicts] or operations_changed():
        return record("error", f"no verdict: {_changed_under_the_judge(spoiled)}")
    return _judged(check, measure, reading, record)


def _changed_under_the_judge(what: Sequence[str]) -> str:
    """Return why a verdict that was reached with these is none, and what to do."""
    return (
        f"the subject replaced {', '.join(what[:3])}{' ...' if what[3:] else ''}, which the check computes with, too: "
        "give your own function another name"
    )


def _read(check: Check, measure: Measure, subject: Subject | Trains) -> Reading:
    """Return the measure's reading; of a claim, the finding on it."""
    if check.claim is None:
        return measure.function(subject, **check.parameters)
    return find(check.claim, check.parameters, lambda parameters: measure.function(subject, **parameters))


def is_small(check: Check) -> bool:
    """Return True if the check is about a model of a debug size."""
    parameters = measures()[check.measure].parameters
    default = parameters["size"].default if "size" in parameters else None
    return str(check.parameters.get("size", default)).startswith("debug")


def _judged(check: Check, measure: Measure, reading: Reading, record: Callable[..., Record]) -> Record:
    """Compare the reading with the check's expectation."""
    dtype = check.parameters.get("dtype")
    if not dtype and "dtype" in measure.parameters:
        dtype = measure.parameters["dtype"].default
    judgement = judge(reading, check.expected, dtype=dtype)
    return record(
        "pass" if judgement.passed else "fail",
        "" if judgement.passed else f"found {judgement.found}; expected {judgement.expected}",
        value=reading.value if not isinstance(reading.value, Mapping) else dict(reading.value),
        unit=reading.unit,
        details=reading.details,
        found=judgement.found,
        expected=judgement.expected,
        where=tuple(judgement.where),
    )


def _summary(protocol: type) -> str:
    return (protocol.__doc__ or "").strip().splitlines()[0].rstrip(".")
