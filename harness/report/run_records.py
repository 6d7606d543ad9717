"""The records of one run, by kind: its header, checks, comparisons, expected metrics, diagnoses and footer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.core.record_files import Row
from harness.report.formatting import date, plain, plural
from harness.report.json_values import as_list, mappings

SETTINGS = ("size", "device", "threads")  # what distinguishes two comparisons besides their metric and point
VERDICTS = ("pass", "fail", "error", "declared", "skip")


@dataclass(frozen=True)
class RunRecords:
    """The records of one run, by kind. `footer` is None if the run died before its end."""

    header: Row = field(default_factory=dict)
    checks: tuple[Row, ...] = ()
    comparisons: tuple[Row, ...] = ()
    expected_metrics: tuple[Row, ...] = ()
    diagnoses: tuple[Row, ...] = ()
    footer: Row | None = None

    @classmethod
    def of(cls, records: list[Row]) -> RunRecords:
        """Sort records by kind; kinds that this version does not know are left out."""
        by_kind: dict[str, list[Row]] = {}
        for record in records:
            by_kind.setdefault(str(record.get("kind")), []).append(record)
        footer = next(iter(by_kind.get("footer", [])), None)
        return cls(
            header=next(iter(by_kind.get("header", [])), {}),
            # A failure that the subject's author has declared is counted apart.
            checks=tuple(
                {**check, "verdict": "declared"} if check.get("declared") else check
                for check in by_kind.get("record", [])
            ),
            comparisons=tuple(with_distinct_metrics(with_adjusted_p(by_kind.get("comparison", []), footer))),
            expected_metrics=tuple(by_kind.get("held", [])),
            diagnoses=tuple(by_kind.get("diagnosis", [])),
            footer=footer,
        )

    @property
    def interrupted(self) -> bool:
        """True if the run ended before it had finished."""
        return self.footer is None or self.footer.get("complete") is False

    @property
    def subject(self) -> str:
        """The name of the model or program that was judged or timed."""
        subject = self.header.get("subject")
        name = subject.get("name") if isinstance(subject, dict) else subject
        return plain(name) if name else "an unnamed subject"

    @property
    def environment(self) -> Row:
        """The machine and versions of the run, as its header states them."""
        environment = self.header.get("environment")
        return environment if isinstance(environment, dict) else {}

    @property
    def selection(self) -> bool:
        """True if the run's options name some checks; `-m claims` leaves out no claim."""
        arguments = [str(argument) for argument in as_list(self.header.get("arguments"))]
        return any(
            argument.startswith("-k") or argument in ("--lf", "--last-failed") or "::" in argument
            for argument in arguments
        )

    @property
    def only_claims(self) -> bool:
        """True if every check of the run is a claim."""
        return bool(self.checks) and all(isinstance(check.get("claim"), dict) for check in self.checks)

    @property
    def counts(self) -> dict[str, int]:
        """The number of checks by verdict, counted again from the records."""
        return count_verdicts(self.checks)

    def of_verdict(self, *verdicts: str) -> list[Row]:
        """Return the checks with one of these verdicts, in the order of the run."""
        return [check for check in self.checks if check.get("verdict") in verdicts]


def with_adjusted_p(comparisons: list[Row], footer: Row | None) -> list[Row]:
    """Return the comparisons, each ratio with its p adjusted over all ratios of the run, which the footer has."""
    p = {ratio_key(row, row.get("arm")): row.get("adjusted") for row in mappings((footer or {}).get("adjusted"))}
    return [
        {
            **comparison,
            "ratios": [
                {**ratio, "adjusted": p.get(ratio_key(comparison, ratio.get("arm")))}
                for ratio in mappings(comparison.get("ratios"))
            ],
        }
        for comparison in comparisons
    ]


def ratio_key(row: Row, arm: object) -> tuple[str, ...]:
    """Return what identifies one ratio of a run."""
    return tuple(str(value) for value in (row.get("comparison"), row.get("metric"), row.get("point"), arm))


def with_distinct_metrics(comparisons: list[Row]) -> list[Row]:
    """Return the comparisons with their axes in words, and with varying settings in the names of their metrics.

    A comparison made with one thread and with two has the metrics `forward, 1 thread` and `forward, 2 threads`.
    """
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
        for settings in [varying_settings(comparison, seen)]
    ]


def varying_settings(comparison: Row, seen: dict[tuple[str, str], set[str]]) -> list[str]:
    """Return the settings of a comparison that differ among the comparisons of its name."""
    name = str(comparison.get("comparison"))
    return [value for setting, value in settings_of(comparison).items() if len(seen[name, setting]) > 1]


def settings_of(comparison: Row) -> dict[str, str]:
    """Return size, device and threads as text, without the one that is the comparison's axis."""
    found = {name: plain(comparison[name], longest=40) for name in SETTINGS if comparison.get(name) is not None}
    found |= {"threads": str(plural(comparison["threads"], "thread"))} if "threads" in found else {}
    return {name: text for name, text in found.items() if name != comparison.get("axis")}


def count_verdicts(checks: Sequence[Row]) -> dict[str, int]:
    """Return the number of checks by verdict, every verdict present."""
    found = [check.get("verdict") for check in checks]
    return {verdict: found.count(verdict) for verdict in VERDICTS}


def provenance(run: RunRecords) -> str:
    """Return the line under every plot: processor, threads, versions, date, subject and commit."""
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
    """Return the commit of the run, and that its tree had uncommitted changes if it had."""
    if not environment.get("git_commit"):
        return None
    changed = " + uncommitted changes" if environment.get("git_dirty") else ""
    return f"commit {plain(environment['git_commit'])[:10]}{changed}"
