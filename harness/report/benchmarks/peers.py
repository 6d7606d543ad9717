"""The section on peers: where another implementation is faster than the subject, by how much, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms
from harness.report.formatting import plural
from harness.report.json_values import as_cell, as_float, as_list, as_mapping, mappings
from harness.report.markdown import LONGEST_TABLE, escape, table
from harness.report.run_records import RunRecords

MOST_TIME = 2  # operations that are named


class Pair(NamedTuple):
    """The subject and a peer that did the same work in turns; `ratio` is the subject's time over the peer's."""

    subject: Row
    peer: Row
    ratio: Row


def section(run: RunRecords) -> Iterator[str]:
    """Yield how often a peer is faster, and a row for each such work: both under their ceilings, and what they ran."""
    pairs = list(pairs_of(run))
    if not pairs:
        return
    slower = conclusive(pairs, "SLOWER")
    yield from ("### Compared with peers", "", *summary(run), "")
    if not slower:
        return
    heads = ["work", "peer", "peer is faster by", "subject", "peer", "subject's time is most in"]
    slower.sort(key=lambda pair: -(as_float(pair.ratio.get("ratio")) or 0.0))
    cells = [[*work(pair), account(pair.subject), account(pair.peer), most_time(pair.subject)] for pair in slower]
    yield from table(heads, cells, right=heads[2:3], most=LONGEST_TABLE)
    yield (
        "Time below the ceiling is lost either inside the matrix products (and fused attention), or outside them: in "
        "small operations, copies and Python, which grow with the number of operations."
    )
    yield ""


def summary(run: RunRecords) -> Iterator[str]:
    """Yield how often the subject is faster than a peer that did the same work, and how often slower."""
    pairs = list(pairs_of(run))
    if pairs:
        faster, slower, same = (len(conclusive(pairs, verdict)) for verdict in ("FASTER", "SLOWER", "SAME"))
        yield (
            f"The subject and a peer did the same work in turns {plural(len(pairs), 'time')}: the subject is faster in "
            f"{faster}, slower in {slower}, and as fast in {same}; {len(pairs) - faster - slower - same} inconclusive."
        )


def pairs_of(run: RunRecords) -> Iterator[Pair]:
    """Yield the pairs that the footer lists, each with the rows of its two arms."""
    rows = {
        tuple(as_cell(row[key]) for key in ("comparison", "metric", "point", "arm")): row
        for comparison in run.comparisons
        for row in arms(comparison)
    }
    for ratio in mappings((run.footer or {}).get("beside_peers")):
        where = tuple(as_cell(ratio.get(key)) for key in ("comparison", "metric", "point"))
        subject, peer = (rows.get((*where, as_cell(ratio.get(key)))) for key in ("arm", "peer"))
        if subject and peer and as_float(ratio.get("ratio")):
            yield Pair(subject, peer, ratio)


def conclusive(pairs: list[Pair], verdict: str) -> list[Pair]:
    """Return the pairs of a verdict that remain after the adjustment over all of them."""
    return [
        pair for pair in pairs if pair.ratio.get("verdict") == verdict and not formatting.fails_adjustment(pair.ratio)
    ]


def work(pair: Pair) -> list[str]:
    """Return the cells for the work with the subject's arm, the peer, and by how much the peer is faster."""
    row, ratio = pair.subject, pair.ratio
    at = "" if row["point"] is None else f" {formatting.where(row['point'], row['axis'])}"
    interval = formatting.interval(as_float(ratio.get("low")), as_float(ratio.get("high")))
    return [
        escape(f"{row['comparison']} {row['metric']}{at}: {row['arm']}", 80),
        escape(pair.peer["arm"], 40),
        f"{formatting.factor(as_float(ratio.get('ratio')) or 0.0)}{interval}",
    ]


def account(row: Row) -> str:
    """Return `68% of bandwidth, 79% of the time in products, 640 operations`, as far as it was observed."""
    operations = as_float(as_mapping(row["witness"]).get("operations"))
    fraction, products = formatting.percent(row["fraction"]), formatting.percent(row["in_products"])
    parts = [
        f"{fraction} of {escape(row['regime'], 20)}" if fraction else "",
        f"{products} of the time in products" if products else "",
        str(plural(int(operations), "operation")) if operations else "operations not observed",
    ]
    return ", ".join(filter(None, parts))


def most_time(row: Row) -> str:
    """Return the operations that took most of the time, as observed."""
    kernels = [str(name) for name in as_list(as_mapping(row["witness"]).get("kernels"))]
    return escape(", ".join(kernels[:MOST_TIME]), 80)
