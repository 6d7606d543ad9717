"""The section on expected metrics: exponents and counts that were measured, beside what theory says."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.blocks import Anchor
from harness.report.formatting import number, plain, plural, slug, two_decimals
from harness.report.json_values import as_float
from harness.report.markdown import LONGEST_TABLE, collapsed, escape, link_to_all_rows, table
from harness.report.run_records import RunRecords

ANCHOR = "expected-and-measured"
VERDICTS = {"pass": "pass", "fail": "fail", "differs": "differs", "unresolved": "inconclusive"}  # record to page
AT = re.compile(r"at (\w+)=(\d{1,12})$")  # the point of a metric, as its record says it
OPEN = 12  # rows of a table that is not collapsed


def summary(run: RunRecords) -> Iterator[str]:
    """Yield the tally of the verdicts on expected metrics, for the head of the page."""
    verdicts = [str(row.get("verdict")) for row in run.expected_metrics]
    if verdicts:
        tally = [f"{verdicts.count(each)} {text}" for each, text in VERDICTS.items() if each in verdicts]
        yield f"Expected and measured: {', '.join(tally)} ([all of them](#{ANCHOR}))."


def section(run: RunRecords) -> Iterator[str]:
    """Yield a table of the metrics, each with its interval and its expected value."""
    rows = [cells(row) for row in run.expected_metrics]
    if rows:
        yield from (Anchor(ANCHOR), "", "### Expected and measured", "")
        heads = ["comparison", "arm", "metric", "measured", "expected", "verdict"]
        ids = [f"metric-{slug(' '.join(row[:3]), 120)}" for row in rows]
        shown = table(heads, rows, ids=ids, most=LONGEST_TABLE)
        yield from collapsed(plural(len(rows), "metric") or "", shown) if len(rows) > OPEN else shown
        if any(row.get("verdict") == "differs" for row in run.expected_metrics):
            yield (
                "*differs*: the time grows otherwise than the FLOP. That is no failure: a closed form of FLOP knows "
                "nothing of caches, of threads, and of what a call costs besides."
            )
            yield ""
        yield from link_to_all_rows(len(rows), "held")


def in_words(at: re.Match[str]) -> str:
    """Return `for 24 new tokens` in place of `at new_tokens=24`."""
    return formatting.where(int(at[2]), at[1].replace("_", " "))


def cells(row: Row) -> list[str]:
    """Return a metric as a row of the table."""
    found, low, high = (as_float(row.get(key)) for key in ("found", "low", "high"))
    text = two_decimals if "exponent" in str(row.get("what")) else number
    interval = "" if low is None or high is None else f" [{text(low)}, {text(high)}]"
    where = plain(f"{row.get('comparison')} {row.get('metric') or ''}", 60)
    recorded = plain(row.get("verdict"), 20)
    verdict = escape(VERDICTS.get(recorded, recorded))
    return [
        *(escape(text, 80) for text in (where, row.get("arm") or "", AT.sub(in_words, plain(row.get("what"))))),
        f"{'' if found is None else text(found)}{interval}",
        escape(number(row.get("expected")), 80),
        f"**{verdict}**" if recorded == "fail" else verdict,
    ]
