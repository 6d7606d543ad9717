"""The section on failures: the first ones in full, the others in a table."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.blocks import Details
from harness.report.formatting import number, plural, slug
from harness.report.json_values import as_list, as_mapping
from harness.report.markdown import LONGEST_TABLE, code, escape, link_to_all_rows, prose, table
from harness.report.run_records import RunRecords
from harness.report.verifications.check_rows import places

IN_FULL = 10  # failures that are shown in full


def section(run: RunRecords) -> Iterator[str]:
    """Yield every check that failed or broke."""
    explained = explained_by_findings(run)
    bad = in_order(run)
    yield from ("## Failures", "")
    if not bad:
        yield from ("Nothing failed." if run.counts["pass"] else "Nothing was judged.", "")
    count = sum(str(check.get("id")) in explained for check in bad)
    if count:
        rest = "nothing else fails" if count == len(bad) else "what it does not explain comes first"
        yield from (f"The diagnosis explains {count} of these {plural(len(bad), 'failure')}; {rest}.", "")
    # A check that did not run because another one failed has nothing to add.
    in_full = [check for check in bad if not as_mapping(check.get("details")).get("because")][:IN_FULL]
    for check in in_full:
        yield from failure(check)
    others = [check for check in bad if check not in in_full]
    if others:
        rows = [
            [code(name_of(check)), escape("; ".join(places(check)[:2]), 60), prose(check.get("message"), 120)]
            for check in others
        ]
        yield from (f"### And {len(others)} more", "")
        ids = [anchor(check, "failure") for check in others]
        yield from table(["check", "where", "message"], rows, ids=ids, most=LONGEST_TABLE)
        yield from link_to_all_rows(len(others), "checks")


def explained_by_findings(run: RunRecords) -> set[str]:
    """Return the ids of the checks whose failure the diagnosis explains."""
    return {str(check) for row in run.diagnoses for check in as_list(row.get("explained"))}


def in_order(run: RunRecords) -> list[Row]:
    """Return the checks that failed or broke; those that no finding explains come first, as they are left to find."""
    explained = explained_by_findings(run)
    return sorted(run.of_verdict("fail", "error"), key=lambda check: str(check.get("id")) in explained)


def name_of(check: Row) -> str:
    """Return a check's suite, name and varying parameters: `structure/parameter-count,size=124M,tied=true`."""
    return formatting.plain(f"{check.get('suite')}/{str(check.get('id') or '').split('::')[-1] or check.get('check')}")


def failure(check: Row) -> Iterator[str]:
    """Yield one failed check: what was found and expected, where, why it exists, and how to rerun it."""
    broke = check.get("verdict") == "error"
    title = escape(name_of(check)) + (" (error)" if broke else "")
    facts = {
        "error": prose(check.get("message")) if broke else "",
        "found": "" if broke else prose(found(check)),
        "expected": prose(expected(check)),
        "where": escape(formatting.entries(places(check), 6)),
        "likely cause": prose(as_mapping(check.get("details")).get("hint") or ""),
        "parameters": escape(formatting.parameters(as_mapping(check.get("parameters")))),
        "why": prose(check.get("why") or ""),
        "source": prose(check.get("source") or ""),
        "rerun": code(check.get("rerun") or ""),
    }
    lines = [f"- **{key}**: {text}" for key, text in facts.items() if text]
    summary = f"{code(name_of(check))} {prose(check.get('message') or found(check), 200)}"
    markdown = "\n".join([f"### {title}", "", *lines])
    yield from (Details(summary, lines, id=anchor(check, "failure"), markdown=markdown), "")


def found(check: Row) -> str:
    """Return what a check found, as its record words it, otherwise its value and unit."""
    value = f"{number(check.get('value'))} {formatting.plain(check.get('unit') or '')}"
    return str(check.get("found") or value)


def expected(check: Row) -> str:
    """Return what a check expects, as its record words it, otherwise from the expectation itself."""
    return str(check.get("expected_text") or formatting.expectation(check.get("expected")))


def anchor(check: Row, kind: str) -> str:
    """Return the anchor of a check on the page, the same in every run: `check-structure-parameter-count-size-124m`."""
    return f"{kind}-{slug(name_of(check), longest=120)}"
