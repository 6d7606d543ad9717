"""The page's section on the subject beside its peers: where one of them is faster, by how much, and why."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.report import tables, wording
from harness.report.markdown import LONGEST_TABLE, escape, table
from harness.report.run import Row, Run, mappings, plural
from harness.report.tables import as_list, as_mapping
from harness.report.wording import as_float
from harness.statistics import FEWEST_ROUNDS, PLACE, Ratio, by_chance, holm, log_ratio, paired_ratio

LEVEL = 0.05
MOST_TIME = 2  # operations that are named


@dataclass(frozen=True)
class Pair:
    """The subject and a peer that did the same work in turns; `ratio` is the subject's time over the peer's.

    `p` is its probability where there is no difference, by what the run's identical arms scatter by.
    """

    subject: Row
    peer: Row
    ratio: Ratio
    p: float


def section(run: Run) -> Iterator[str]:
    """How often the subject is behind a peer, and a row for each time: both under their ceilings, and what they ran."""
    pairs = list(pairs_of(run))
    if not pairs:
        return
    slower = behind(pairs)
    faster = len(standing(pairs, "FASTER"))
    yield from ("### Beside its peers", "")
    yield (
        f"The subject and a peer did the same work in turns {plural(len(pairs), 'time')}: the subject is faster in "
        f"{faster}, behind in {len(slower)}, and in {len(pairs) - faster - len(slower)} this run cannot tell."
    )
    yield ""
    if not slower:
        return
    heads = ["work", "peer", "peer is faster by", "subject", "peer", "subject's time is most in"]
    cells = [[*told(pair), account(pair.subject), account(pair.peer), most_time(pair.subject)] for pair in slower]
    yield from table(heads, cells[:LONGEST_TABLE], right=heads[2:3])
    yield (
        "Why: what a time lacks to its ceiling is lost inside of the matrix products (fused attention among them), or "
        "outside of them: in small operations, copies and Python, the more the more operations there are."
    )
    yield ""


def pairs_of(run: Run) -> Iterator[Pair]:
    """Each peer with the subject's own arm of the same comparison: the control, or else the fastest."""
    alarms = as_mapping((run.footer or {}).get("false_alarms"))
    beyond, twins = as_float(alarms.get("scatter")) or PLACE, as_float(alarms.get("pairs")) or math.inf
    for comparison in run.comparisons:
        seconds = {arm.get("arm"): as_list(arm.get("seconds")) for arm in mappings(comparison.get("arms"))}
        rows = [row for row in tables.arms(comparison) if row["verified"] == "pass" and as_float(row["median_seconds"])]
        own = [row for row in rows if not row["peer"] and not row["twin_of"]]
        if not own:
            continue
        subject = min(own, key=lambda row: (row["arm"] != row["control"], row["median_seconds"]))
        for peer in rows:
            times, others = seconds[subject["arm"]], seconds[peer["arm"]]
            if peer["peer"] and not peer["twin_of"] and len(times) == len(others) >= FEWEST_ROUNDS:
                p = by_chance(log_ratio(times, others), beyond, twins)
                yield Pair(subject, peer, paired_ratio(times, others), p)


def behind(pairs: list[Pair]) -> list[Pair]:
    """Those in which the peer is faster, the worst first."""
    return sorted(standing(pairs, "SLOWER"), key=lambda pair: -pair.ratio.ratio)


def standing(pairs: list[Pair], verdict: str) -> list[Pair]:
    """Those of a verdict, by more than so many pairs would show by chance (Holm)."""
    adjusted = holm([pair.p for pair in pairs])
    return [pair for pair, p in zip(pairs, adjusted, strict=True) if pair.ratio.verdict == verdict and p <= LEVEL]


def told(pair: Pair) -> list[str]:
    """Which work, which peer, by how much."""
    row, ratio = pair.subject, pair.ratio
    at = "" if row["point"] is None else f", {wording.at(row['point'], row['axis'])}"
    bounds = wording.bounds(ratio.low, ratio.high)
    return [
        escape(f"{row['comparison']} {row['metric']}{at}", 80),
        escape(pair.peer["arm"], 40),
        f"{wording.factor(ratio.ratio)}{bounds}",
    ]


def account(row: Row) -> str:
    """`68% of bandwidth, 79% of the time in products, 640 operations`: as much of it as was seen."""
    operations = as_float(as_mapping(row["witness"]).get("operations"))
    fraction, products = wording.share(row["fraction"]), wording.share(row["in_products"])
    said = [
        f"{fraction} of {escape(row['regime'], 20)}" if fraction else "",
        f"{products} of the time in products" if products else "",
        plural(int(operations), "operation") if operations else "operations not seen",
    ]
    return ", ".join(filter(None, said))


def most_time(row: Row) -> str:
    """The operations that took most of the time of all, as they were watched."""
    kernels = [str(name) for name in as_list(as_mapping(row["witness"]).get("kernels"))]
    return escape(", ".join(kernels[:MOST_TIME]), 80)
