"""The section on failures: the first ones in full, the others in a table."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.formatting import number
from harness.report.json_values import as_mapping
from harness.report.markdown import LONGEST_TABLE, code, escape, link_to_all_rows, prose, table
from harness.report.run_records import RunRecords
from harness.report.verifications.check_rows import places

IN_FULL = 10  # failures that are shown in full


def section(run: RunRecords) -> Iterator[str]:
    """Yield every check that failed or broke."""
    bad = run.of_verdict("fail", "error")
    yield from ("## Failures", "")
    if not bad:
        yield from ("Nothing failed." if run.counts["pass"] else "Nothing was judged.", "")
    # A check that did not run because another one failed has nothing to add.
    in_full = [check for check in bad if not as_mapping(check.get("details")).get("because")][:IN_FULL]
    for check in in_full:
        yield from failure(check)
    others = [check for check in bad if check not in in_full]
    if others:
        rows = [
            [code(name_of(check)), escape("; ".join(places(check)[:2]), 60), prose(check.get("message"), 120)]
            for check in others[:LONGEST_TABLE]
        ]
        yield from (f"### And {len(others)} more", "")
        yield from table(["check", "where", "message"], rows)
        yield from link_to_all_rows(len(others), "checks")


def name_of(check: Row) -> str:
    """Return a check's suite, name and varying parameters: `structure/parameter-count,size=124M,tied=true`."""
    return formatting.plain(f"{check.get('suite')}/{str(check.get('id') or '').split('::')[-1] or check.get('check')}")


def failure(check: Row) -> Iterator[str]:
    """Yield one failed check: what was found and expected, where, why it exists, and how to rerun it."""
    broke = check.get("verdict") == "error"
    title = f"### {escape(name_of(check))}"
    yield from (f"{title} (error)" if broke else title, "")
    value = f"{number(check.get('value'))} {formatting.plain(check.get('unit') or '')}"
    facts = {
        "error": prose(check.get("message")) if broke else "",
        "found": "" if broke else prose(check.get("found") or value),
        "expected": prose(check.get("expected_text") or formatting.expectation(check.get("expected"))),
        "where": escape(formatting.entries(places(check), 6)),
        "likely cause": prose(as_mapping(check.get("details")).get("hint") or ""),
        "parameters": escape(formatting.parameters(as_mapping(check.get("parameters")))),
        "why": prose(check.get("why") or ""),
        "source": prose(check.get("source") or ""),
        "rerun": code(check.get("rerun") or ""),
    }
    yield from (f"- **{key}**: {text}" for key, text in facts.items() if text)
    yield ""
