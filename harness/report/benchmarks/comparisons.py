"""The page's sections on a benchmark run: what was found, a figure and a table a comparison, what speaks against it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from harness.report import tables, wording
from harness.report.benchmarks import beside, roofline, scaling
from harness.report.figure import Plot
from harness.report.markdown import (
    LONGEST_TABLE,
    anchor,
    csv,
    escape,
    figure,
    folded,
    missing,
    prose,
    rest,
    table,
)
from harness.report.run import Row, Run, mappings, plural
from harness.report.tables import as_list, as_mapping
from harness.report.wording import as_float, number

COMMAND = "pytest benchmarks/ --benchmark-autosave"
ALWAYS = ("precision", "attention", "generation")  # what `pytest benchmarks/` compares in any case
NUMERIC = ("time", "tokens/s", "positions", "peak memory", "ceiling", "in products", "error")
DISAGREEMENT = 1.1  # memory ledgers further apart than this are printed side by side
TOLERATED = 0.10  # a run that tells more of its identical arms apart than this is no evidence
OPEN = 12  # rows of a table that is not folded away
SHARED = 2  # so many arms with the same extra make it a column


@dataclass(frozen=True)
class FalseAlarms:
    """How many pairs of identical arms a run timed, and how many it called different."""

    pairs: int
    flagged: int
    evidence: bool
    by_their_rounds: int | None = None  # so many before what they scatter by was allowed for
    scatter: float | None = None

    @classmethod
    def of(cls, run: Run) -> FalseAlarms:
        """As the footer counted them; where it did not (older runs, runs that died), from the twins' ratios."""
        told = as_mapping((run.footer or {}).get("false_alarms"))
        pairs, flagged = told.get("pairs"), told.get("flagged")
        if not isinstance(pairs, int) or not isinstance(flagged, int):
            rows = [row for comparison in run.comparisons for row in tables.arms(comparison)]
            twins = [row for row in rows if row["twin_of"] and as_float(row["ratio"])]
            pairs, flagged = len(twins), sum(wording.resolved(row) for row in twins)
        evidence = told.get("evidence") is not False and flagged <= TOLERATED * pairs
        first, beyond = told.get("by_their_rounds"), as_float(told.get("scatter"))
        return cls(pairs, flagged, evidence, first if isinstance(first, int) else None, beyond)

    @property
    def words(self) -> str:
        """`Identical arms: 12 pairs, 0 called different (0%, at most 22% with 95% confidence)`."""
        if not self.pairs:
            return "Identical arms: none were timed against each other, so this run's false alarms are not known"
        most = at_most(self.flagged, self.pairs)
        told = (
            f"Identical arms: {plural(self.pairs, 'pair')}, {self.flagged} called different "
            f"({self.flagged / self.pairs:.0%}, at most {most:.0%} with 95% confidence)"
        )
        if self.by_their_rounds is None or self.scatter is None:
            return told
        return (
            f"{told}; by the noise of their rounds alone it were {self.by_their_rounds}, but they scatter by "
            f"{self.scatter:.1%} (one sigma) beyond it, which every difference below is held to"
        )


def at_most(flagged: int, pairs: int) -> float:
    """The one-sided 95% bound on a share of which `flagged` of `pairs` were seen (Clopper & Pearson, 1934)."""
    low, high = flagged / pairs, 1.0
    for _ in range(50):
        share = (low + high) / 2
        seldom = math.fsum(math.comb(pairs, k) * share**k * (1 - share) ** (pairs - k) for k in range(flagged + 1))
        low, high = (share, high) if seldom > 0.05 else (low, share)
    return high


def stamp(run: Run) -> Iterator[str]:
    """What must be read before any figure of a run that calls its identical arms different, or timed none."""
    alarms = FalseAlarms.of(run)
    if not alarms.evidence:
        said = "no identical arms were timed against each other, so nothing says how often its verdicts are wrong"
        if alarms.pairs:
            seen = f"{alarms.flagged} of {plural(alarms.pairs, 'pair')} of identical arms were called different"
            said = f"{seen}. Above {TOLERATED:.0%} no verdict of this benchmark run counts"
        yield from (f"**NOT EVIDENCE: {said}.**", "")


def summary(run: Run) -> Iterator[str]:
    """The run's own trustworthiness, for the first lines of the page."""
    yield f"{FalseAlarms.of(run).words}."
    verdicts = [str(row.get("verdict")) for row in run.held]
    if verdicts:
        told = [
            f"{verdicts.count(each)} {each}" for each in ("pass", "fail", "differs", "unresolved") if each in verdicts
        ]
        yield f"Held against theory: {', '.join(told)} ([all of them](#held-against-theory))."
    if any(comparison.get("quick") for comparison in run.comparisons):
        yield "This was a quick run: fewer points and shorter sequences than a whole one."
    loads = [load for comparison in run.comparisons if (load := as_float(comparison.get("load"))) is not None]
    if loads:
        span = dict.fromkeys((number(min(loads)), number(max(loads))))
        yield f"Load of the machine before each comparison: {' to '.join(span)}."


def sections(run: Run | None, found: list[Plot]) -> Iterator[str]:
    """The overview, the machine, what was held against theory, and every comparison of the run."""
    yield from ("## Benchmarks", "")
    if run is None or not run.comparisons:
        yield from missing("Nothing was compared yet", COMMAND)
        return
    yield (
        "The arms of a comparison took turns, and a time is shown only where the arm's output was verified. Times are "
        "medians ± spread; a ratio has its 95% interval behind it, and `not resolved` says that this run cannot tell "
        "the two apart."
    )
    yield ""
    if any(wording.unsettled(ratio) for comparison in run.comparisons for ratio in mappings(comparison.get("ratios"))):
        yield (
            f"{wording.UNSETTLED} resolved by its own rounds, but not by what the run's identical arms scatter by, or "
            "not after Holm's adjustment over all ratios of the run."
        )
        yield ""
    named = tables.by_comparison(run)
    yield from overview(named, found)
    yield from beside.section(run)
    yield from machine_ceilings(run, [plot for plot in found if plot.section == "roofline"])
    yield from held(run)
    for name, comparisons in named.items():
        yield from (f'<a id="{place(name)}"></a>', "", f"### {escape(title(name, comparisons), 120)}", "")
        for plot in found:
            if plot.section == name:
                yield from figure(plot)
        yield from arm_table(name, comparisons)
    for name in ALWAYS:
        if name not in named:
            yield from missing(f"This run has no comparison of {name}", f"{COMMAND} -k {name}")


def title(name: str, comparisons: list[Row]) -> str:
    """What a comparison is called on the page."""
    return str(comparisons[0].get("title") or name.replace("-", " ").capitalize())


def place(name: str) -> str:
    """Where on the page a comparison is."""
    return f"comparison-{name}"


def overview(named: dict[str, list[Row]], found: list[Plot]) -> Iterator[str]:
    """What every comparison found, a line each, with the way to its figure."""
    rows = []
    for name, comparisons in named.items():
        arms = [row for comparison in comparisons for row in tables.arms(comparison) if not row["twin_of"]]
        passed, skipped = (sum(row["verified"] == verdict for row in arms) for verdict in ("pass", "skip"))
        verified = f"{passed} of {len(arms) - skipped}"
        verified = verified if passed == len(arms) - skipped else f"**{verified}**"
        verified += f", {skipped} skipped" if skipped else ""
        plots = [plot for plot in found if plot.section == name]
        told = [f"{escape(plot.finding)} ([figure](#{anchor(plot)}))" for plot in plots] or [escape(untold(arms))]
        shown = f"[{escape(title(name, comparisons), 60)}](#{place(name)})"
        rows += [[shown if not index else "", text, "" if index else verified] for index, text in enumerate(told)]
    yield from table(["comparison", "finding", "verified"], rows)


def untold(arms: list[Row]) -> str:
    """What a comparison without a figure has to say: the times of its arms."""
    timed = [(row, wording.timing(row["median_seconds"], row["spread_seconds"])) for row in arms]
    said = [f"{wording.plain(row['arm'], 40)} {time}" for row, time in timed if time]
    return scaling.first(said) or "no time: nothing was verified"


def machine_ceilings(run: Run, figures: list[Plot]) -> Iterator[str]:
    """What the machine was measured to allow in this run."""
    roofs = roofline.roofs_of(run.comparisons)
    if not roofs:
        return
    yield from ("### What the machine allows", "")
    for plot in figures:
        yield from figure(plot)
    rows = []
    for roof in roofs:
        spread = "" if roof.times < 2 else f"± {wording.share(roof.spread / roof.rate)}"
        rows.append([escape(roof.name), roof.kind, roof.words, spread, str(roof.times)])
    numeric = ("allows", "spread", "measured")
    yield from table(["ceiling", "bounds", *numeric], rows, right=numeric)
    yield from (f"Median over the run, measured in turn with the arms: {csv('ceilings')}.", "")


def held(run: Run) -> Iterator[str]:
    """What was held against theory, with the interval of what was found."""
    rows = []
    for row in run.held:
        found, low, high = (as_float(row.get(key)) for key in ("found", "low", "high"))
        told = two_decimals if "exponent" in str(row.get("what")) else number
        interval = "" if low is None or high is None else f" [{told(low)}, {told(high)}]"
        where = wording.plain(f"{row.get('comparison')} {row.get('metric') or ''}", 60)
        verdict = wording.plain(row.get("verdict"), 20)
        rows.append([
            *(escape(text, 80) for text in (where, row.get("arm") or "", row.get("what"))),
            f"{'' if found is None else told(found)}{interval}",
            escape(number(row.get("expected")), 80),
            f"**{escape(verdict)}**" if verdict == "fail" else escape(verdict),
        ])  # fmt: skip
    if rows:
        yield from ('<a id="held-against-theory"></a>', "", "### Held against theory", "")
        shown = table(["comparison", "arm", "what", "found", "expected", "verdict"], rows[:LONGEST_TABLE])
        yield from folded(plural(len(rows), "finding") or "", shown) if len(rows) > OPEN else shown
        yield from rest(len(rows), "held")


def two_decimals(value: float) -> str:
    """An exponent."""
    return f"{value:.2f}"


def arm_table(name: str, comparisons: list[Row]) -> Iterator[str]:
    """One row an arm at a point; a column that no arm fills is left out. Then what the rows do not say."""
    by_metric: dict[str, list[Row]] = {}
    for comparison in comparisons:
        by_metric.setdefault(str(comparison.get("metric")), []).extend(tables.arms(comparison))
    rows = [row for found in by_metric.values() for row in found]
    columns, axes = shared_extras(rows), {escape(row["axis"], 40) for row in rows if row["axis"]}
    cells = [arm_cells(row, columns, named=len(axes) > 1) for row in rows]
    if len(by_metric) == 1:
        cells = [{head: text for head, text in row.items() if head != "metric"} for row in cells]
    heads = [head for head in (cells[0] if cells else {}) if any(row[head] for row in cells)]
    axis = axes.pop() if len(axes) == 1 else "at"
    titles = [axis if head == "point" else head for head in heads]
    shown = [[row[head] for head in heads] for row in cells[:LONGEST_TABLE]]
    lines = table(titles, shown, right=(*NUMERIC, *columns.values(), axis))
    yield from folded(f"Every arm at every point: {len(rows)} rows", lines) if len(rows) > OPEN else lines
    notes = [note for row in rows for note in remarks(row, columns)]
    notes += [
        f"{where(row)}: {prose(note)}"
        for row in comparisons
        for note in as_list(row.get("notes"))
        if "was not warm" not in str(note)  # told below, of all rows at once
    ]
    notes += cold(rows)
    if notes:
        yield from (*(f"- {note}" for note in dict.fromkeys(notes)), "")
    yield from ledgers(rows, axis)
    yield from rest(len(rows), tables.file_name(name))


def shared_extras(rows: list[Row]) -> dict[str, str]:
    """The extras that several arms have, with the heads of their columns."""
    names = [name for row in rows for name, value in row["extras"].items() if value is not None]
    return {name: escape(wording.unitless(name)) for name in dict.fromkeys(names) if names.count(name) >= SHARED}


def arm_cells(row: Row, extras: dict[str, str], *, named: bool) -> dict[str, str]:
    """An arm's row of the table, by column; `named` puts the axis beside the point."""
    point = "" if row["point"] is None else escape(wording.at(row["point"], row["axis"] if named else ""))
    speed, positions, error = (as_float(row[key]) for key in ("tokens_per_second", "positions", "error"))
    compared = "" if as_float(row["ratio"]) is None else wording.ratio(row)
    twin = f" (= {escape(row['twin_of'], 60)})" if row["twin_of"] else ""
    return {
        "metric": escape(row["metric"], 60),
        "point": point,
        "arm": escape(row["arm"], 60) + twin,
        "time": wording.timing(row["median_seconds"], row["spread_seconds"]),
        "against the control": "control" if row["arm"] == row["control"] else compared,
        "tokens/s": "" if speed is None else wording.speed(speed),
        "positions": "" if positions is None else f"{positions:,.0f}",
        "peak memory": wording.memory(row["peak_memory_bytes"]),
        "ceiling": ceiling(row),
        "in products": wording.share(row["in_products"]),
        "error": "" if error is None else wording.decimal(error, 2),
        "what ran": escape(witnessed(row["witness"]), 80),
        **{head: escape(wording.quantity(name, row["extras"].get(name)), 60) for name, head in extras.items()},
        "verified": row["verified"] if row["verified"] in ("pass", "skip") else f"**{escape(row['verified'])}**",
    }


def ceiling(row: Row) -> str:
    """How near an arm comes to what bounds it: `81% of compute [79, 83]`."""
    fraction = wording.share(row["fraction"], row["fraction_low"], row["fraction_high"])
    if not fraction:
        return escape(row["regime"] or "", 20)
    middle, _, interval = fraction.partition(" ")
    return f"{middle} of {escape(row['regime'] or 'its ceiling', 20)} {interval}".rstrip()


def witnessed(witness: Row) -> str:
    """What was seen to run: the kind of attention, the type most products were in, and whether it was compiled."""
    shares = {name: as_float(share) or 0.0 for name, share in as_mapping(witness.get("products")).items()}
    kinds = [max(shares, key=lambda name: shares[name])] if shares else []
    kinds += [str(kind) for kind in as_list(witness.get("attention"))]
    return ", ".join(dict.fromkeys([*kinds, *(["compiled"] if witness.get("compiled") is True else [])]))


def where(row: Row) -> str:
    """The metric and point of a row, for a remark."""
    at = "" if row.get("point") is None else f" at {escape(number(row['point']))}"
    return f"{escape(row.get('metric'), 60)}{at}"


def remarks(row: Row, extras: dict[str, str]) -> Iterator[str]:
    """Why an arm has no time or one to doubt, where two accounts of the same thing disagree, and its lone extras."""
    arm = escape(row["arm"], 60)
    if row["verified"] != "pass":
        yield f"no time for {arm} ({escape(row['verified'])}): {prose(row['message'] or 'its output was not verified')}"
        return
    at = "" if row["point"] is None else f" at {escape(number(row['point']))}"
    positions, derived = as_float(row["positions"]), as_float(row["positions_closed_form"])
    if positions and derived and positions != derived:
        yield f"positions of {arm}{at}: {positions:,.0f} counted, {derived:,.0f} by the closed form"
    if (lowest := as_float(row["fraction_low"])) and lowest > 1:
        yield f"{arm}, {where(row)}, beats its ceiling ({ceiling(row)}): its work or the ceiling is miscounted"
    alone = {name: value for name, value in row["extras"].items() if name not in extras and value is not None}
    for name, value in alone.items():
        yield f"{arm}, {where(row)}: {escape(wording.unitless(name))} {escape(wording.quantity(name, value))}"


def cold(rows: list[Row]) -> list[str]:
    """Which arms had not warmed up, in one line."""
    arms: dict[str, list[str]] = {}
    for row in rows:
        if row["warm"] is False:
            arms.setdefault(escape(row["arm"], 60), []).append(where(row))
    said = [f"{arm} ({wording.entries(places, 3)})" for arm, places in arms.items()]
    return [f"not warm when it was timed, so its time may still have been falling: {'; '.join(said)}"] if said else []


def ledgers(rows: list[Row], axis: str) -> Iterator[str]:
    """Where the accounts of the same bytes disagree, every account side by side."""
    weighed = [(row, sizes) for row in rows if not row["twin_of"] and len(sizes := ledger(row)) > 1]
    apart = {index: max(sizes.values()) / min(sizes.values()) for index, (_, sizes) in enumerate(weighed)}
    worst = sorted((index for index in apart if apart[index] > DISAGREEMENT), key=lambda index: -apart[index])
    if not worst:
        return
    names = list(dict.fromkeys(name for index in worst for name in weighed[index][1]))
    cells = [
        [
            escape(weighed[index][0]["metric"], 60),
            escape(number(weighed[index][0]["point"])) if weighed[index][0]["point"] is not None else "",
            escape(weighed[index][0]["arm"], 60),
            *(wording.memory(weighed[index][1].get(name)) for name in names),
            wording.factor(apart[index]),
        ]
        for index in worst[:LONGEST_TABLE]
    ]
    heads = [escape(name, 40) for name in names]
    lines = table(["metric", axis, "arm", *heads, "apart"], cells, right=(axis, *heads, "apart"))
    said = (
        f"The memory ledgers of {len(worst)} of {len(weighed)} rows differ by more than a tenth, "
        f"at most {wording.factor(apart[worst[0]])}"
    )
    yield from folded(said, lines) if len(worst) > 3 else (f"{said}:", "", *lines)


def ledger(row: Row) -> dict[str, float]:
    """The accounts of a row's bytes that hold something."""
    sizes = {str(name): as_float(size) for name, size in row["ledgers"].items()}
    return {name: size for name, size in sizes.items() if size and size > 0}
