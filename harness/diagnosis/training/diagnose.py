"""The diagnosis of a training program: its failures in the order of a run's events, one finding for one mistake."""

from __future__ import annotations

import re
from collections.abc import Sequence

from harness.core.errors import HarnessError, Missing
from harness.diagnosis.finding import Diagnosis, Finding
from harness.diagnosis.training.events import EVENTS, FINITE, Judged
from harness.diagnosis.training.looks import Seen
from harness.diagnosis.training.source_lines import Source
from harness.measures.training.judged_rehearsals import rehearsals_of
from harness.suites.record import Record
from harness.training.protocols import Trains

LINE = re.compile(r"(?P<source>[^:]+:\d+): (?P<text>.*)", re.DOTALL)
NOT_FINITE = re.compile(r"\b(nan|inf)\b")
STEP = re.compile(r"^(step \d+|before step \d+|epoch \d+)(, [\w.]+)?: ")


def diagnose_training(
    program: Trains, records: Sequence[Record], source: Source | None = None
) -> tuple[Diagnosis, list[list[Record]]]:
    """Return the diagnosis, and the failed checks that each finding explains.

    The first finding is the first event of a run that is not what its oracle says. A failure that has the same cause,
    or that follows from another event that is wrong, is no finding of its own.
    """
    order = list(EVENTS)
    failed = [each for each in records if each.verdict == "fail" and each.check.name in EVENTS]
    failed.sort(key=lambda each: order.index(each.check.name))
    findings: list[Finding] = []
    explained: list[list[Record]] = []
    trouble = ""
    for record in failed:
        follows = next((n for n, own in enumerate(explained) if _follows(record, own)), None)
        if follows is not None:
            explained[follows].append(record)
            continue
        try:
            finding = _finding(program, record, EVENTS[record.check.name], source or Source())
        except (HarnessError, Missing) as error:  # a rehearsal that cannot be read again
            trouble = str(error)
            continue
        same = next((n for n, other in enumerate(findings) if _is_same(other, finding)), None)
        if same is not None:
            explained[same].append(record)
        else:
            findings.append(finding)
            explained.append([record])
    return Diagnosis(tuple(findings), trouble=trouble), explained


def _follows(record: Record, from_: Sequence[Record]) -> bool:
    if from_[0].check.name == FINITE and NOT_FINITE.search(f"{record.message} {record.details.get('hint', '')}"):
        return True
    return any(record.check.name in EVENTS[each.check.name].explains for each in from_)


def _finding(program: Trains, record: Record, judged: Judged, source: Source) -> Finding:
    hint = STEP.sub("", str(record.details.get("hint", "")))
    cause = ": ".join(filter(None, (judged.says, hint))) if judged.says_too or not hint else hint
    match = LINE.fullmatch(_line(program, record, judged, source, cause))
    place, text = (match["source"], match["text"]) if match else ("", "")
    return Finding(judged.where, "", cause, f"{record.check.suite}/{record.check.id}: {record.message}", place, text)


def _line(program: Trains, record: Record, judged: Judged, source: Source, cause: str) -> str:
    """Return the user's line that a failed check is about, as `train.py:118: source`; "" if it is not known.

    It is the line of the event, unless the source has one of the kind that such a cause is about.
    """
    recordings = [program.record(rehearsal) for rehearsal in sorted(rehearsals_of(record.check))]
    place = record.where[0] if record.where else ""
    by_cause = next((line for word, line in (judged.lines or {}).items() if word in cause), None)
    own = "" if by_cause else str(record.details.get("line", ""))
    line = own or next(filter(None, ((by_cause or judged.line)(recording, place) for recording in recordings)), "")
    found = judged.look(Seen(cause, recordings, line, source)) if judged.look else ""
    return found or line


def _is_same(first: Finding, other: Finding) -> bool:
    """Return True for one cause on one line, which several rehearsals or checks show."""
    return first.where == other.where and first.cause == other.cause and first.source == other.source
