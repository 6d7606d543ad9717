"""One run as a report sees it: its header, checks, comparisons and footer, picked out of the records."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from harness.report.wording import date, plain

Row = dict[str, Any]
SETTINGS = ("size", "device", "threads")  # of a comparison, beside its metric and its point
VERDICTS = ("pass", "fail", "error", "declared", "skip")


@dataclass(frozen=True)
class Run:
    """The records of one run, by kind. `footer` is None when the run died before its end."""

    header: Row = field(default_factory=dict)
    checks: tuple[Row, ...] = ()
    comparisons: tuple[Row, ...] = ()
    held: tuple[Row, ...] = ()
    diagnoses: tuple[Row, ...] = ()
    footer: Row | None = None

    @classmethod
    def of(cls, records: list[Row]) -> Run:
        """Sort records by what they are; kinds that this version does not know are left out."""
        by_kind: dict[str, list[Row]] = {}
        for record in records:
            by_kind.setdefault(str(record.get("kind")), []).append(record)
        footer = next(iter(by_kind.get("footer", [])), None)
        return cls(
            header=next(iter(by_kind.get("header", [])), {}),
            # A failure that its author has declared is counted apart.
            checks=tuple(
                {**check, "verdict": "declared"} if check.get("declared") else check
                for check in by_kind.get("record", [])
            ),
            comparisons=tuple(told_apart(adjusted(by_kind.get("comparison", []), footer))),
            held=tuple(by_kind.get("held", [])),
            diagnoses=tuple(by_kind.get("diagnosis", [])),
            footer=footer,
        )

    @property
    def interrupted(self) -> bool:
        """Whether the run ended before it had done all it set out to do."""
        return self.footer is None or self.footer.get("complete") is False

    @property
    def subject(self) -> str:
        """What was judged or timed."""
        subject = self.header.get("subject")
        name = subject.get("name") if isinstance(subject, dict) else subject
        return plain(name) if name else "an unnamed subject"

    @property
    def environment(self) -> Row:
        """The machine and versions of the run, as its header states them."""
        environment = self.header.get("environment")
        return environment if isinstance(environment, dict) else {}

    @property
    def counts(self) -> dict[str, int]:
        """How many checks ended with each verdict, counted again from the records."""
        return count(self.checks)

    def of_verdict(self, *verdicts: str) -> list[Row]:
        """The checks that ended so, in the order of the run."""
        return [check for check in self.checks if check.get("verdict") in verdicts]


def adjusted(comparisons: list[Row], footer: Row | None) -> list[Row]:
    """The comparisons, every ratio with the p that the footer adjusted over all of them."""
    p = {place(row, row.get("arm")): row.get("adjusted") for row in mappings((footer or {}).get("adjusted"))}
    return [
        {
            **comparison,
            "ratios": [
                {**ratio, "adjusted": p.get(place(comparison, ratio.get("arm")))}
                for ratio in mappings(comparison.get("ratios"))
            ],
        }
        for comparison in comparisons
    ]


def place(row: Row, arm: object) -> tuple[str, ...]:
    """What names one ratio of a run."""
    return tuple(str(value) for value in (row.get("comparison"), row.get("metric"), row.get("point"), arm))


def told_apart(comparisons: list[Row]) -> list[Row]:
    """The comparisons, axes in words; where one was made in several settings (threads, say), its metrics say so."""
    seen: dict[tuple[str, str], set[str]] = {}
    for comparison in comparisons:
        for setting, value in settings_of(comparison).items():
            seen.setdefault((str(comparison.get("comparison")), setting), set()).add(value)
    return [
        {
            **comparison,
            "axis": axis.replace("_", " ") if isinstance(axis := comparison.get("axis"), str) else axis,
            "metric": ", ".join([str(comparison.get("metric")), *settings]) if settings else comparison.get("metric"),
        }
        for comparison in comparisons
        for settings in [varying(comparison, seen)]
    ]


def varying(comparison: Row, seen: dict[tuple[str, str], set[str]]) -> list[str]:
    """The settings of a comparison that others of its name do not share."""
    name = str(comparison.get("comparison"))
    return [value for setting, value in settings_of(comparison).items() if len(seen[name, setting]) > 1]


def settings_of(comparison: Row) -> dict[str, str]:
    """Size, device and threads in words, but for what is the comparison's own axis."""
    told = {name: plain(comparison[name], longest=40) for name in SETTINGS if comparison.get(name) is not None}
    told |= {"threads": str(plural(comparison["threads"], "thread"))} if "threads" in told else {}
    return {name: words for name, words in told.items() if name != comparison.get("axis")}


def mappings(value: Any) -> list[Row]:
    """The mappings in a list; an empty list for anything else."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def count(checks: tuple[Row, ...] | list[Row]) -> dict[str, int]:
    """Checks by verdict, every verdict present."""
    found = [check.get("verdict") for check in checks]
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def machine(run: Run) -> str:
    """The line under every figure: processor, threads, versions, date, subject and commit."""
    environment = run.environment
    processor = re.sub(r"\((R|TM|r|tm)\)", "", plain(environment.get("cpu") or "unknown processor", longest=60))
    parts = [
        plain(environment["gpu"], longest=60) if environment.get("gpu") else None,
        " ".join(processor.split()),
        plural(environment.get("cores"), "core"),
        plural(environment.get("threads"), "thread"),
        *(f"{name} {plain(environment[name])}" for name in ("torch", "transformers") if environment.get(name)),
        date(run.header.get("started")).split(" ")[0],
        plain(run.subject, longest=60),
        commit(environment),
    ]
    return " · ".join(part for part in parts if part)


def commit(environment: Row) -> str | None:
    """The commit that was measured; a tree with uncommitted changes says so."""
    if not environment.get("git_commit"):
        return None
    changed = " + uncommitted changes" if environment.get("git_dirty") else ""
    return f"commit {plain(environment['git_commit'])[:10]}{changed}"


def plural(count: object, noun: str) -> str | None:
    """`2 cores`, `1 core`; None where the count is not known."""
    if not isinstance(count, int):
        return None
    return f"{count:,} {noun}" + ("" if count == 1 else "s")
