"""The summary that the terminal shows at the end of a run: verdict by suite, failures, diagnosis, what to do.

Pure functions from records to lines. The summary fits on a screen of 40 lines and 110 columns.
"""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from harness.core.record_files import Row
from harness.suites.suite_order import place_of

WORDS = ("pass", "fail", "error", "declared", "skip")
WIDTH = 110
FAILURES = 3  # failures that are listed
MESSAGE = 2  # lines of one failure
FINDINGS = 4
OF_A_PROGRAM = 6  # findings of a training program: one event each
SKIPS = 2
SLOWEST = 10


class SummaryLine(NamedTuple):
    """A line of the summary; `kind` is 'section' for a heading, or the colour."""

    text: str
    kind: str = ""


def verdict_word(row: Row) -> str:
    """Return the verdict as it is counted: a declared failure is neither passed nor failed."""
    return "declared" if row.get("declared") else str(row["verdict"])


def is_bad(row: Row) -> bool:
    """Return True for a failure or an error that is not declared."""
    return verdict_word(row) in ("fail", "error")


def summary(
    rows: Sequence[Row],
    diagnoses: Mapping[str, Row],
    *,
    excepted: Mapping[str, str],
    scripts: Mapping[str, str],
    verbose: bool = False,
    durations: bool = False,
) -> Iterator[SummaryLine]:
    """Return all lines.

    Args:
        rows: the records of the checks.
        diagnoses: the diagnosis of each subject that failed.
        excepted: the declared deviations of each subject that has some, in words.
        scripts: the script that reproduces the difference, by subject.
        verbose: list every skipped check and every reason.
        durations: list the slowest checks even if some failed.
    """
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    bad = [row for row in rows if is_bad(row)]
    # A GPT and a training program are not compared: no check judges both.
    compared = len({(row["suite"], row["id"], row["subject"]) for row in rows}) > len({check_name(row) for row in rows})
    yield SummaryLine("verdict by suite", "section")
    yield from side_by_side(rows) if compared else by_suite(rows)
    for subject in subjects:
        if subject in excepted:
            yield SummaryLine(_cut(f"{subject}: {excepted[subject]}"), "yellow")
    for subject in subjects:
        own = [row for row in bad if row["subject"] == subject]
        if own:
            of = f" of {subject}" if len(subjects) > 1 else ""
            found = diagnoses.get(subject, {})
            if found:
                yield SummaryLine(f"diagnosis{of}", "section")
                yield from diagnosis(found)
            rest = unexplained(own, found)
            if rest:
                yield SummaryLine(
                    f"what {'else ' if len(rest) < len(own) else ''}fails{of.replace('of', 'in')}", "section"
                )
                yield from failures(rest, most=FAILURES if len(subjects) == 1 else 3)
            yield SummaryLine("what to do", "section")
            yield from what_to_do(own, found, scripts.get(subject, ""))
    yield from skipped(rows, verbose=verbose or not bad)
    yield from options_not_judged(rows)
    yield from remarks(rows)
    if durations or not bad:
        yield from slowest(rows)


def by_suite(rows: Iterable[Row]) -> Iterator[SummaryLine]:
    """Return a line for each suite: the number of each verdict, and the time."""
    suites: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for row in rows:
        suites.setdefault(row["suite"], Counter())[verdict_word(row)] += 1
        seconds[row["suite"]] += row["seconds"]
    longest = max(map(len, suites))
    used = [w for w in WORDS if w != "declared" or any(counts[w] for counts in suites.values())]
    for suite, counts in sorted(suites.items()):
        numbers = "  ".join(f"{counts[w]:>3} {w}" if counts[w] else " " * (4 + len(w)) for w in used)
        colour = "red" if counts["fail"] or counts["error"] else "green"
        yield SummaryLine(f"{suite:<{longest}}  {numbers}  {seconds[suite]:>6.1f} s", colour)


def side_by_side(rows: Sequence[Row]) -> Iterator[SummaryLine]:
    """Return a table with a column for each subject: verdicts by suite, then the checks that some subject fails."""
    subjects = list(dict.fromkeys(row["subject"] for row in rows))
    cells: dict[str, dict[str, Counter[str]]] = {}
    for row in rows:
        for line in (row["suite"], f"{row['suite']}/{row['check']}"):
            cells.setdefault(line, {}).setdefault(row["subject"], Counter())[verdict_word(row)] += 1
    suites = sorted(line for line in cells if "/" not in line)
    failing = [line for line in cells if "/" in line and any(c["fail"] or c["error"] for c in cells[line].values())]
    shown = [*suites, *failing[:FAILURES]]
    table = [[line, *(_counts(cells[line].get(subject)) for subject in subjects)] for line in shown]
    first = min(44, max(map(len, shown)))
    longest = max(len(cell) for cell in [*subjects, *(cell for line in table for cell in line[1:])])
    width = min(longest, (WIDTH - first) // len(subjects) - 2)
    for line, colour in [(["", *subjects], "")] + [(line, _colour(line[1:])) for line in table]:
        columns = "  ".join(f"{_cut(cell, width):<{width}}" for cell in line[1:])
        yield SummaryLine(f"{_cut(line[0], first):<{first}}  {columns}".rstrip(), colour)
    if failing[FAILURES:]:
        yield SummaryLine(f"and {len(failing) - FAILURES} more checks that some subject fails: see the report")


def _counts(counts: Counter[str] | None) -> str:
    """Return the numbers of failures, errors and declared failures; `pass` or `skip` if there are none."""
    if not counts:
        return "not run"
    bad = ", ".join(f"{counts[w]} {w}" for w in ("fail", "error", "declared") if counts[w])
    return bad or ("pass" if counts["pass"] else "skip")


def _colour(cells: Iterable[str]) -> str:
    return "red" if any("fail" in cell or "error" in cell for cell in cells) else "green"


def check_name(row: Row) -> str:
    """Return the name of a check without the subject: `suite/check,size=debug`."""
    return f"{row['suite']}/{row['id'].rpartition('::')[2]}".removesuffix(f"@{row['subject']}")


def failures(bad: Sequence[Row], *, most: int) -> Iterator[SummaryLine]:
    """Return each failed check in at most MESSAGE lines, in the order of the suites.

    Those that differ only in parameters, or raised the same, share the lines.
    """
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in bad:
        because = row["details"].get("because")
        raised = row["details"].get("raised") or {}
        key = ("because",) if because else ("raised", *raised.values()) if raised else (row["suite"], row["check"])
        groups.setdefault(key, []).append(row)
    ordered = sorted(
        groups.values(), key=lambda rows: (bool(rows[0]["details"].get("because")), place_of(rows[0]["suite"]))
    )
    shown = ordered[:most]
    titles = [check_name(rows[0]) if len(rows) == 1 else f"{rows[0]['suite']}/{rows[0]['check']}" for rows in shown]
    for title, rows in zip(titles, shown, strict=True):
        if rows[0]["details"].get("because"):
            yield SummaryLine(_cut(f"{len(rows)} more {rows[0]['message']}"), "red")
            continue
        suites = {row["suite"] for row in rows}
        others = f" and {len(rows) - 1} more" if len(rows) > 1 else ""
        if len(suites) > 1:
            others += f" of {len(suites)} suites"
        text = f"{_cut(title, 60)}{others}: {' '.join(rows[0]['message'].split())}"
        yield from (SummaryLine(line, "red") for line in _wrapped(text, MESSAGE, indent="    "))
    if len(groups) > most:
        rest = sum(len(rows) for rows in ordered[most:])
        yield SummaryLine(f"and {rest} more: --full-failures prints each in full, the report lists them", "red")


def by_explained(findings: Sequence[Row]) -> list[Row]:
    """Return the findings by how many failures each explains; those that explain as many, in execution order."""
    return sorted(findings, key=lambda each: -each.get("explains", 0))


def in_order(found: Row) -> list[Row]:
    """Return the undeclared findings: of a GPT those that explain most first, of a program as they happen."""
    findings = [each for each in found.get("findings", []) if not each.get("declared")]
    return findings if found.get("in_order") else by_explained(findings)


def unexplained(bad: Sequence[Row], found: Row) -> list[Row]:
    """Return the failures that are not known to follow from the causes found."""
    explained = set(found.get("explained", ()))
    return [row for row in bad if row["id"] not in explained]


def diagnosis(found: Row) -> Iterator[SummaryLine]:
    """Return the findings, those that explain most first: place, line, cause, evidence; and what they explain."""
    findings = in_order(found)
    declared = [each for each in found.get("findings", []) if each.get("declared")]
    most = OF_A_PROGRAM if found.get("in_order") else FINDINGS
    for number, each in enumerate(findings[:most], 1):
        at = f"  {each['source']}" if each.get("source") else ""
        text = f":  {each['text'].strip()}" if at and each.get("text") else ""
        yield SummaryLine(_cut(f"{number}. {each['where']}{at}{text}"), "bold")
        fault = f" [{each['fault']}]" if each.get("fault") else ""
        text = "; ".join(part.rstrip(".") for part in (each["cause"] + fault, each["evidence"]) if part)
        yield from (SummaryLine(f"   {line}") for line in _wrapped(text, 3 if number == 1 else 2))
    if findings[most:]:
        yield SummaryLine(f"   and {len(findings) - most} more after it: see the report")
    if found.get("explained_of"):
        explain = "this explains" if len(findings) == 1 else "these explain"
        count, of = len(found["explained"]), found["explained_of"]
        again = "" if found.get("in_order") else " that were judged again"
        yield SummaryLine(f"   {explain} {count} of the {of} failures{again}")
    if blocks := dict.fromkeys(each["declaration"] for each in findings if each.get("declaration")):
        yield SummaryLine("   if that is intended, declare it beside FILE.py, in FILE.deviations.toml:")
        yield from (SummaryLine(f"      {line}") for block in blocks for line in block.splitlines())
    for each in declared:
        yield SummaryLine(_cut(f"   declared: {each['where']}: {each['cause']}"))
    if found.get("trouble"):
        yield SummaryLine(_cut(found["trouble"]), "red")
    elif not findings:
        yield SummaryLine("no known cause fits; the failures above are all that is known")


def what_to_do(bad: Sequence[Row], found: Row, script: str) -> Iterator[SummaryLine]:
    """Return the line to look at first, and the commands that reproduce the failure."""
    findings = in_order(found)
    sources = [each["source"] for each in findings if each.get("source")]
    sources += [row["details"]["raised"]["place"] for row in bad if row["details"].get("raised")]
    if sources:
        yield SummaryLine(_cut(f"look at    {sources[0]}"))
    # Among failures with a message of their own: one from the suite that fails most, and quick to run.
    own = [row for row in bad if not row["details"].get("because")] or list(bad)
    failing = Counter(row["suite"] for row in own)
    quickest = min(own, key=lambda row: (row["verdict"] != "fail", -failing[row["suite"]], row["seconds"] > 1.0))
    yield SummaryLine(f"run again  {quickest['rerun']}")
    if script:
        yield SummaryLine(f"see it     python {script}")


def skipped(rows: Sequence[Row], *, verbose: bool) -> Iterator[SummaryLine]:
    """Return the skipped checks by what is missing; their names only if verbose."""
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row["verdict"] == "skip":
            reasons.setdefault(row["message"], []).append(check_name(row))
    if not reasons:
        return
    yield SummaryLine("skipped, by what is missing", "section")
    for reason, names in list(reasons.items())[: None if verbose else SKIPS]:
        yield SummaryLine(reason if verbose else _cut(f"{len(names):>3}  {reason}"))
        if verbose:
            wrapped = textwrap.wrap("  ".join(names), width=WIDTH, break_long_words=False, break_on_hyphens=False)
            yield from (SummaryLine(f"    {line}") for line in wrapped)
    if not verbose and len(reasons) > SKIPS:
        yield SummaryLine(f"and for {len(reasons) - SKIPS} more reasons: -v or the report lists them")


def options_not_judged(rows: Sequence[Row]) -> Iterator[SummaryLine]:
    """Return a line for each subject with parameters that no check passes: nothing is known of them."""
    for row in rows:
        if options := row["details"].get("not judged", {}).get("options"):
            yield SummaryLine(_cut(f"no check passes these options of {row['subject']}: {options}"), "yellow")


def remarks(rows: Sequence[Row]) -> Iterator[SummaryLine]:
    """Return what checks that pass found worth telling, as the price of TF32."""
    for row in rows:
        if row["verdict"] == "pass" and (said := row["details"].get("says")):
            yield SummaryLine(_cut(f"{row['subject']}: {said}"), "yellow")


def slowest(rows: Sequence[Row]) -> Iterator[SummaryLine]:
    """Return the slowest checks."""
    yield SummaryLine(f"{min(SLOWEST, len(rows))} slowest checks", "section")
    for row in sorted(rows, key=lambda r: -r["seconds"])[:SLOWEST]:
        yield SummaryLine(f"{row['seconds']:>6.1f} s  {row['id']}")


def _wrapped(text: str, most: int, indent: str = "") -> list[str]:
    """Return the text in at most so many lines, cut at the end of a word."""
    width = WIDTH - (0 if indent else 3)
    return textwrap.wrap(
        text, width, max_lines=most, placeholder=" ...", subsequent_indent=indent, break_on_hyphens=False
    )


def _cut(text: str, width: int = WIDTH) -> str:
    return text if len(text) <= width else f"{text[: width - 4]} ..."
