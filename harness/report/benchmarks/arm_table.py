"""The table of a comparison: one row for each arm at each point, and notes on what the rows do not say."""

from __future__ import annotations

import re
from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms
from harness.report.blocks import Cell
from harness.report.csv_tables import file_name
from harness.report.formatting import number, plain, slug
from harness.report.json_values import as_float, as_list, as_mapping
from harness.report.markdown import LONGEST_TABLE, collapsed, escape, link_to_all_rows, prose, table

NUMERIC = (
    *("time", "tokens/s", "positions", "memory in all", "weights", "cache", "peak of a call"),
    *("share of ceiling", "in products", "error", "allowed"),
)
WEIGHTS, CACHE = "weights_bytes", "cache_bytes"  # extras that are columns beside the peak memory
# What an extra is called, if its name without the unit says too little.
EXTRA_HEADS = {
    "cache_closed_form_bytes": "cache by closed form",
    "held_cache_bytes": "cache by closed form",  # older records
    "model_flops": "FLOP of the model",
    "mfu": "model FLOP utilisation",
    "first_call_seconds": "first call (compiles)",
    "break_even_calls": "calls until compiling has paid off",
}
DISAGREEMENT = 1.1  # memory ledgers further apart than this are printed side by side
IDENTITY = ("metric", "point", "arm")  # of a row of the table, the same in every run
OPEN = 12  # rows of a table that is not collapsed
SHARED = 2  # an extra that this many arms have is a column
ONLY_IN_CSV = re.compile(r"acceptance_at_\d+_share")  # one extra for each position of a draft


def lines(name: str, comparisons: list[Row]) -> Iterator[str]:
    """Yield the table of a comparison, without the columns that no arm fills, and then its notes."""
    by_metric: dict[str, list[Row]] = {}
    for comparison in comparisons:
        by_metric.setdefault(str(comparison.get("metric")), []).extend(arms(comparison))
    rows = [row for found in by_metric.values() for row in found]
    extras, axes = shared_extras(rows), {escape(row["axis"], 40) for row in rows if row["axis"]}
    cells = [arm_cells(row, extras, axis_named=len(axes) > 1) for row in rows]
    if len(by_metric) == 1:
        cells = [{head: text for head, text in row.items() if head != "metric"} for row in cells]
    heads = [head for head in (cells[0] if cells else {}) if any(row[head] for row in cells)]
    axis = escape(formatting.axis_title(axes.pop())) if len(axes) == 1 else "at"
    titles = [axis if head == "point" else head for head in heads]
    shown = [[row[head] for head in heads] for row in cells]
    ids = [f"arm-{slug(name)}-{slug(' '.join(str(row[key] or '') for key in IDENTITY), 100)}" for row in rows]
    markdown = table(titles, shown, right=(*NUMERIC, *extras.values(), axis), ids=ids, most=LONGEST_TABLE)
    yield from collapsed(f"Every arm at every point: {len(rows)} rows", markdown) if len(rows) > OPEN else markdown
    notes = [note for row in rows for note in arm_notes(row, extras)]
    notes += [
        f"{where(row)}: {prose(note)}"
        for row in comparisons
        for note in as_list(row.get("notes"))
        if "was not warm" not in str(note)  # `not_warm` says it once for all rows
    ]
    notes += not_warm(rows)
    if notes:
        yield from (*(f"- {note}" for note in dict.fromkeys(notes)), "")
    yield from ledgers(rows, axis)
    yield from link_to_all_rows(len(rows), file_name(name))


def shared_extras(rows: list[Row]) -> dict[str, str]:
    """Return the extras that several arms have, with the heads of their columns."""
    names = [name for row in rows for name, value in further_extras(row).items() if value is not None]
    return {name: escape(extra_head(name)) for name in dict.fromkeys(names) if names.count(name) >= SHARED}


def further_extras(row: Row) -> Row:
    """Return the extras of an arm that the page shows and that have no column of their own."""
    shown = {name: value for name, value in row["extras"].items() if not ONLY_IN_CSV.fullmatch(plain(name))}
    return {name: value for name, value in shown.items() if name not in (WEIGHTS, CACHE)}


def extra_head(name: str) -> str:
    """Return what an extra is called on the page."""
    return EXTRA_HEADS.get(name, formatting.without_unit(name))


def memory_cells(row: Row) -> dict[str, Cell]:
    """Return the memory of an arm: weights, cache, the peak of a call beyond them, and the sum if all are known."""
    weights, cache, peak = (
        as_float(each) for each in (*map(row["extras"].get, (WEIGHTS, CACHE)), row["peak_memory_bytes"])
    )
    sizes = {
        "memory in all": weights + (cache or 0.0) + peak if weights and peak is not None else None,
        "weights": weights,
        "cache": cache,
        "peak of a call": peak,
    }
    return {head: Cell(formatting.memory(size), size) for head, size in sizes.items()}


def arm_cells(row: Row, extras: dict[str, str], *, axis_named: bool) -> dict[str, str]:
    """Return an arm's cells by column; `axis_named` puts the axis beside the point."""
    at = "" if row["point"] is None else escape(formatting.at(row["point"], row["axis"] if axis_named else ""))
    tokens, positions = (as_float(row[key]) for key in ("tokens_per_second", "positions"))
    errors = {head: as_float(row[head]) for head in ("error", "allowed")}
    ratio = "" if as_float(row["ratio"]) is None else formatting.ratio(row)
    twin = f" (= {escape(row['twin_of'], 60)})" if row["twin_of"] else ""
    return {
        "metric": escape(row["metric"], 60),
        "point": Cell(at, as_float(row["point"])),
        "arm": escape(row["arm"], 60) + twin,
        "time": Cell(formatting.timing(row["median_seconds"], row["spread_seconds"]), as_float(row["median_seconds"])),
        "against the control": Cell(
            "control" if row["arm"] == row["control"] else ratio,
            1.0 if row["arm"] == row["control"] else as_float(row["ratio"]),
        ),
        "tokens/s": formatting.per_second(tokens) if tokens else "",
        "positions": "" if positions is None else f"{positions:,.0f}",
        **memory_cells(row),
        "share of ceiling": Cell(ceiling_share(row), as_float(row["fraction"])),
        "in products": formatting.percent(row["in_products"]),
        **{head: Cell("" if error is None else formatting.decimal(error, 2), error) for head, error in errors.items()},
        "what ran": escape(what_ran(row["witness"]), 80),
        **{
            head: Cell(escape(formatting.quantity(name, value), 60), as_float(value))
            for name, head in extras.items()
            for value in (row["extras"].get(name),)
        },
        "verified": row["verified"] if row["verified"] in ("pass", "skip") else f"**{escape(row['verified'])}**",
    }


def ceiling_share(row: Row) -> str:
    """Return how near an arm comes to its ceiling: `81% of compute [79, 83]`."""
    fraction = formatting.percent(row["fraction"], row["fraction_low"], row["fraction_high"])
    if not fraction:
        return escape(row["regime"] or "", 20)
    middle, _, interval = fraction.partition(" ")
    return f"{middle} of {escape(row['regime'] or 'its ceiling', 20)} {interval}".rstrip()


def what_ran(witness: Row) -> str:
    """Return what was seen to run: the type of most products, the kind of attention, and `compiled` if it was."""
    shares = {name: as_float(share) or 0.0 for name, share in as_mapping(witness.get("products")).items()}
    kinds = [max(shares, key=lambda name: shares[name])] if shares else []
    kinds += [str(kind) for kind in as_list(witness.get("attention"))]
    return ", ".join(dict.fromkeys([*kinds, *(["compiled"] if witness.get("compiled") is True else [])]))


def where(row: Row) -> str:
    """Return the metric and point of a row, for a note: `forward at 256 tokens`."""
    return f"{escape(row.get('metric'), 60)}{at_point(row)}"


def at_point(row: Row) -> str:
    """Return the point of a row after a space; an empty string if it has none."""
    return "" if row.get("point") is None else f" {escape(formatting.where(row['point'], row.get('axis')), 60)}"


def arm_notes(row: Row, extras: dict[str, str]) -> Iterator[str]:
    """Yield why an arm has no time or a doubtful one, which of its figures disagree, and the extras without a column.

    `extras` are those that have a column.
    """
    arm = escape(row["arm"], 60)
    if row["verified"] != "pass":
        yield f"no time for {arm} ({escape(row['verified'])}): {prose(row['message'] or 'its output was not verified')}"
        return
    positions, derived = as_float(row["positions"]), as_float(row["positions_closed_form"])
    if positions and derived and positions != derived:
        yield f"positions of {arm}{at_point(row)}: {positions:,.0f} counted, {derived:,.0f} by the closed form"
    if (lowest := as_float(row["fraction_low"])) and lowest > 1:
        yield f"{arm}, {where(row)}, beats its ceiling ({ceiling_share(row)}): its work or the ceiling is miscounted"
    others = {name: value for name, value in further_extras(row).items() if name not in extras and value is not None}
    for name, value in others.items():
        yield f"{arm}, {where(row)}: {escape(extra_head(name))} {escape(formatting.quantity(name, value))}"


def not_warm(rows: list[Row]) -> list[str]:
    """Return a note on the arms that were timed before they had warmed up."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["warm"] is False:
            found.setdefault(escape(row["arm"], 60), []).append(where(row))
    texts = [f"{arm} ({formatting.entries(points, 3)})" for arm, points in found.items()]
    return [f"not warm when it was timed, so its time may still have been falling: {'; '.join(texts)}"] if texts else []


def ledgers(rows: list[Row], axis: str) -> Iterator[str]:
    """Yield the memory ledgers of an arm side by side if they disagree."""
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
            *(Cell(formatting.memory(size), size) for name in names for size in (weighed[index][1].get(name),)),
            formatting.factor(apart[index]),
        ]
        for index in worst
    ]
    heads = [escape(name, 40) for name in names]
    markdown = table(["metric", axis, "arm", *heads, "apart"], cells, right=(axis, *heads, "apart"), most=LONGEST_TABLE)
    text = (
        f"The memory ledgers of {len(worst)} of {len(weighed)} rows differ by more than a tenth, "
        f"at most {formatting.factor(apart[worst[0]])}"
    )
    yield from collapsed(text, markdown) if len(worst) > 3 else (f"{text}:", "", *markdown)


def ledger(row: Row) -> dict[str, float]:
    """Return the ledgers of a row that counted any bytes."""
    sizes = {str(name): as_float(size) for name, size in row["ledgers"].items()}
    return {name: size for name, size in sizes.items() if size and size > 0}
