"""The page's section on the subject beside its peers: where one of them is faster, by how much, and why."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from harness.report import tables, wording
from harness.report.markdown import LONGEST_TABLE, escape, table
from harness.report.run import Row, Run, mappings, plural
from harness.report.tables import as_list, as_mapping
from harness.report.wording import as_float

MOST_TIME = 2  # operations that are named


class Pair(NamedTuple):
    """The subject and a peer that did the same work in turns; `ratio` is the subject's time over the peer's."""

    subject: Row
    peer: Row
    ratio: Row


def section(run: Run) -> Iterator[str]:
    """How often the subject is behind a peer, and a row for each time: both under their ceilings, and what they ran."""
    pairs = list(pairs_of(run))
    if not pairs:
        return
    faster, slower = (standing(pairs, verdict) for verdict in ("FASTER", "SLOWER"))
    yield from ("### Beside its peers", "")
    yield (
        f"The subject and a peer did the same work in turns {plural(len(pairs), 'time')}: the subject is faster in "
        f"{len(faster)}, behind in {len(slower)}, and in {len(pairs) - len(faster) - len(slower)} this run cannot tell."
    )
    yield ""
    if not slower:
        return
    heads = ["work", "peer", "peer is faster by", "subject", "peer", "subject's time is most in"]
    slower.sort(key=lambda pair: -(as_float(pair.ratio.get("ratio")) or 0.0))
    cells = [[*told(pair), account(pair.subject), account(pair.peer), most_time(pair.subject)] for pair in slower]
    yield from table(heads, cells[:LONGEST_TABLE], right=heads[2:3])
    yield (
        "Why: what a time lacks to its ceiling is lost inside of the matrix products (fused attention among them), or "
        "outside of them: in small operations, copies and Python, the more the more operations there are."
    )
    yield ""


def pairs_of(run: Run) -> Iterator[Pair]:
    """The pairs that the footer holds, each with the rows of its two arms."""
    rows = {
        (row["comparison"], row["metric"], row["point"], row["arm"]): row
        for comparison in run.comparisons
        for row in tables.arms(comparison)
    }
    for ratio in mappings((run.footer or {}).get("beside_peers")):
        where = (ratio.get("comparison"), ratio.get("metric"), ratio.get("point"))
        subject, peer = (rows.get((*where, ratio.get(key))) for key in ("arm", "peer"))
        if subject and peer and as_float(ratio.get("ratio")):
            yield Pair(subject, peer, ratio)


def standing(pairs: list[Pair], verdict: str) -> list[Pair]:
    """Those of a verdict that stand after the adjustment for all of them."""
    return [pair for pair in pairs if pair.ratio.get("verdict") == verdict and not wording.unsettled(pair.ratio)]


def told(pair: Pair) -> list[str]:
    """Which work, which peer, by how much."""
    row, ratio = pair.subject, pair.ratio
    at = "" if row["point"] is None else f", {wording.at(row['point'], row['axis'])}"
    bounds = wording.bounds(as_float(ratio.get("low")), as_float(ratio.get("high")))
    return [
        escape(f"{row['comparison']} {row['metric']}{at}", 80),
        escape(pair.peer["arm"], 40),
        f"{wording.factor(as_float(ratio.get('ratio')) or 0.0)}{bounds}",
    ]


def account(row: Row) -> str:
    """`68% of bandwidth, 79% of the time in products, 640 operations`: as much of it as was seen."""
    operations = as_float(as_mapping(row["witness"]).get("operations"))
    fraction, products = wording.share(row["fraction"]), wording.share(row["in_products"])
    said = [
        f"{fraction} of {escape(row['regime'], 20)}" if fraction else "",
        f"{products} of the time in products" if products else "",
        str(plural(int(operations), "operation")) if operations else "operations not seen",
    ]
    return ", ".join(filter(None, said))


def most_time(row: Row) -> str:
    """The operations that took most of the time of all, as they were watched."""
    kernels = [str(name) for name in as_list(as_mapping(row["witness"]).get("kernels"))]
    return escape(", ".join(kernels[:MOST_TIME]), 80)
