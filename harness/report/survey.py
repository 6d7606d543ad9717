"""The report of a survey, a pure function of its records: which GPTs were read, what was found, what is true."""

from __future__ import annotations

import csv
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.core.record_files import Row
from harness.report.markdown import code, escape, table
from harness.report.page_files import write_page

PAGE = "survey.md"
WIDTH = 110


def rows_of(rows: Sequence[Row]) -> list[Row]:
    """Return the rows about a GPT, without header and footer."""
    return [row for row in rows if row.get("kind") == "surveyed"]


def reported(row: Row) -> list[str]:
    """Return the ids that the diagnosis reported, each once."""
    return list(dict.fromkeys(each["fault"] for each in row["findings"] if each["fault"]))


def missed(row: Row) -> list[str]:
    """Return the ids that are true and were not reported; [] if nobody has said what is true."""
    return [each for each in row["expected"] or () if each not in reported(row)]


def unexpected(row: Row) -> list[str]:
    """Return the ids that were reported and are not true; [] if nobody has said what is true, or it was not read."""
    return [] if row["expected"] is None else [each for each in reported(row) if each not in row["expected"]]


def is_alarm(row: Row) -> bool:
    """Return True if a GPT of which nothing is to be found has a check that fails."""
    return row["expected"] == [] and bool(row["verdicts"].get("fail") or row["verdicts"].get("error"))


def shortfalls(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of fair GPTs that were not read, or of which something was missed or reported wrongly."""
    return [
        row
        for row in rows_of(rows)
        if row["fair"] and (not row["read"] or missed(row) or unexpected(row) or is_alarm(row))
    ]


def lines(row: Row) -> Iterator[str]:
    """Yield the lines of one GPT for a terminal: what happened, what was found, what is true."""
    verdicts = ", ".join(f"{count} {word}" for word, count in row["verdicts"].items())
    outcome = "read" if row["read"] else "NOT READ"
    yield f"{row['spec']}  {outcome}  {verdicts or 'nothing judged'}  {row['seconds']:.0f} s"
    for each in row["findings"]:
        fault = f" [{each['fault']}]" if each["fault"] else ""
        yield from _wrapped("found", f"{each['where']}: {each['cause']}{fault}  {each['source']}")
    if not row["read"] and row["message"]:
        yield from _wrapped("because", reason(row["message"]))
    if row["truth"]:
        yield from _wrapped("truth", row["truth"])
    for label, ids in (("missed", missed(row)), ("not true", unexpected(row))):
        if ids:
            yield from _wrapped(label, ", ".join(ids))


def reason(message: str) -> str:
    """Return the line of what pytest printed that says why a GPT was not read: what failed, or the last one."""
    lines = message.splitlines()
    failed = [line.strip().removeprefix("failed").strip() for line in lines if line.strip().startswith("failed ")]
    return failed[0] if failed else lines[-1]


def _wrapped(label: str, text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=f"  {label:<9}", subsequent_indent=" " * 11) or [f"  {label}"]


def summary(rows: Sequence[Row]) -> Iterator[str]:
    """Yield the figures: read, found, reported wrongly, time."""
    judged = rows_of(rows)
    fair = [row for row in judged if row["fair"]]
    read = [row for row in fair if row["read"]]
    known = [row for row in read if row["expected"] is not None]
    yield f"read      {len(read)} of {len(fair)} fair ones; {len(judged) - len(fair)} more were tried"
    if known:
        wanted = sum(len(row["expected"]) for row in known)
        wrong = sum(len(unexpected(row)) for row in known)
        alarms = sum(is_alarm(row) for row in known)
        yield f"found     {wanted - sum(len(missed(row)) for row in known)} of {wanted} deviations"
        yield f"not true  {wrong} reported; {alarms} right ones with a failing check"
    if len(known) < len(read):
        yield f"compare   {len(read) - len(known)} with their truth by eye: no ids are stated"
    if read:
        times = sorted(row["seconds"] for row in read)
        yield f"time      {times[len(times) // 2]:.0f} s for the median one, {times[-1]:.0f} s for the slowest"


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the page and its table into `folder`; return their paths, the page first."""
    path = folder / PAGE
    write_page(path, page(rows))
    return [path, _write_table(folder / "tables" / "survey.csv", rows_of(rows))]


def page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    parts = ["# Survey of other people's GPTs", "", "```", *summary(rows), "```", ""]
    parts += table(
        ["GPT", "read", "found", "true", "missed", "not true", "s"],
        [
            [
                code(row["spec"]),
                "yes" if row["read"] else "no" if row["fair"] else "no (not fair)",
                escape(", ".join(reported(row)), 300),
                escape(row["truth"], 600),
                escape(", ".join(missed(row)), 300),
                escape(", ".join(unexpected(row)), 300),
                f"{row['seconds']:.0f}",
            ]
            for row in rows_of(rows)
        ],
        right=["s"],
    )
    return "\n".join([*parts, "Every finding is in [survey.csv](tables/survey.csv)."]) + "\n"


def _write_table(path: Path, rows: Sequence[Row]) -> Path:
    """Write one row for each finding, and one for each GPT without any."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="", errors="replace") as file:
        writer = csv.writer(file)
        writer.writerow(["spec", "fair", "read", "truth", "fault", "where", "cause", "source", "message", "seconds"])
        for row in rows:
            for each in row["findings"] or [{}]:
                found = [each.get(key, "") for key in ("fault", "where", "cause", "source")]
                head = [row["spec"], row["fair"], row["read"], row["truth"]]
                writer.writerow([*head, *found, reason(row["message"] or " "), f"{row['seconds']:.1f}"])
    return path
