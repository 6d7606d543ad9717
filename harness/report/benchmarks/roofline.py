"""The roofline: the ceilings of the machine, and how near every verified arm comes to them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms
from harness.report.benchmarks.ceilings import ceilings_of
from harness.report.benchmarks.roofline_drawing import Dot, draw
from harness.report.formatting import plain, short_name, slug
from harness.report.json_values import as_float
from harness.report.plot import Plot
from harness.report.run_records import RunRecords, provenance


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each machine setting (device and threads) with both ceilings and arms of known work."""
    settings: dict[tuple[str, str], list[Row]] = {}
    for comparison in bench.comparisons:
        if comparison.get("ceilings"):  # older runs measured none
            settings.setdefault((str(comparison.get("device")), str(comparison.get("threads"))), []).append(comparison)
    found = []
    for setting, comparisons in settings.items():
        device, threads = (plain(value, longest=30) for value in setting)
        ceilings, dots = ceilings_of(comparisons), dots_of(comparisons)
        if not dots or not {"compute", "bandwidth"} <= {ceiling.kind for ceiling in ceilings}:
            continue
        where = [*([device] if device != "None" else []), *([f"{threads} threads"] if threads != "None" else [])]
        only = len(settings) == 1
        found.append(
            Plot(
                section="roofline",
                name="roofline" if only else f"roofline-{slug(' '.join(where))}",
                headline=headline(dots) + ("" if only else f" ({', '.join(where)})"),
                description=(
                    "Every verified arm by its arithmetic intensity (FLOP for each byte that it has to move) and its "
                    "speed; lines are the ceilings measured in this run. Below the slope memory is the limit, below a "
                    "flat line arithmetic; of reading, the fastest and the slowest amount. The legend has the colour "
                    "and the shape of each topic. A name stands beside the arm of a topic that comes nearest to its "
                    "ceiling, where there is room; each mark has its own under the pointer. A hollow mark is an arm "
                    "limited by launching operations."
                ),
                caption=provenance(bench),
                height=5.2,
                draw=partial(draw, ceilings, dots),
            )
        )
    return found


def dots_of(comparisons: Sequence[Row]) -> list[Dot]:
    """Return every verified arm with known FLOPs, bytes and time, without the twins."""
    found = []
    for comparison in comparisons:
        for row in arms(comparison):
            flops, moved, seconds = (as_float(row[key]) for key in ("flops", "moved_bytes", "median_seconds"))
            if flops and moved and seconds and not row["twin_of"] and min(flops, moved, seconds) > 0:
                found.append(
                    Dot(
                        comparison=plain(comparison.get("comparison"), longest=30),
                        label=f"{short_name(row['arm'])}, {plain(row['metric'], longest=24)}",
                        intensity=flops / moved,
                        rate=flops / seconds,
                        fraction=as_float(row["fraction"]),
                        regime=plain(row["regime"], longest=20),
                    )
                )
    return found


def headline(dots: Sequence[Dot]) -> str:
    """Return how many arms are limited by what, and which comes nearest to its ceiling.

    An arm above its ceiling is left out: its time moved more between rounds than the ceiling did.
    """
    known = [dot for dot in dots if dot.fraction is not None and dot.fraction <= 1 and dot.regime != "launch"]
    counts = {regime: sum(dot.regime == regime for dot in dots) for regime in ("compute", "bandwidth", "launch")}
    limits = ", ".join(f"{count} limited by {regime}" for regime, count in counts.items() if count)
    text = f"{len(dots):,} measurements" + (f": {limits}" if limits else "")
    if not known:
        return text
    best = max(known, key=lambda dot: dot.fraction or 0.0)
    return f"{text}; nearest to its ceiling: {best.label}, at {formatting.percent(best.fraction)} of {best.regime}"
