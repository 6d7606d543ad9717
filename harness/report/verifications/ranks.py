"""What ranks cost: the bytes that each sends in a step and stores, measured and by closed form, as section and plot."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report.axes import panel_title
from harness.report.blocks import Cell
from harness.report.formatting import memory
from harness.report.json_values import as_float, as_mapping
from harness.report.markdown import embed, escape, table
from harness.report.plot import COLOURS, GREY, INK, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "ranks"
ONE = "one process"
KINDS = {"data": "data parallel", "sharded": "fully sharded", "tensor": "tensor parallel"}
PARTS = {"parameters": "parameters", "gradients": "gradients", "optimizer": "moments"}
SHADES = {"parameters": COLOURS[0], "gradients": COLOURS[4], "optimizer": COLOURS[2]}
WITHIN = 1.3  # of the closed form, beyond which a bar is drawn as wrong


@dataclass(frozen=True)
class Costs:
    """One kind of ranks: bytes of the largest rank, measured and by closed form; None for what was not measured."""

    kind: str
    ring: float | None = None
    wire: float | None = None
    sent: float | None = None
    """Sent, by closed form."""
    stored: Mapping[str, float] | None = None
    predicted: float | None = None
    """Stored, by closed form."""


def costs_of(run: RunRecords) -> list[Costs]:
    """Return the costs of each kind that was measured, after those of one process; [] if none was."""
    found: dict[str, dict[str, Any]] = {}
    for check in run.checks:
        kind, details = str(as_mapping(check.get("parameters")).get("kind")), as_mapping(check.get("details"))
        predicted = as_float(details.get("predicted bytes"))
        if kind not in KINDS or predicted is None:
            continue
        own = found.setdefault(kind, {})
        if check.get("measure") == "bytes_sent" and isinstance(details.get("traffic"), list):
            own["sent"] = predicted
            for counted in ("ring", "wire"):
                own[counted] = _largest(details["traffic"], counted)
        if check.get("measure") == "memory_of_a_rank" and isinstance(details.get("memory"), list):
            own["predicted"] = 4 * predicted  # with the gradients and two moments
            parts = {part: _largest(details["memory"], part) for part in PARTS}
            own["stored"] = {part: size for part, size in parts.items() if size is not None}
    kinds = [Costs(kind, **found[kind]) for kind in KINDS if found.get(kind)]
    whole = next((each.predicted for each in kinds if each.kind == "data" and each.predicted), None)
    if not kinds or whole is None:
        return kinds
    quarter = whole / 4
    stored = {"parameters": quarter, "gradients": quarter, "optimizer": 2 * quarter}
    return [Costs(ONE, 0.0, 0.0, 0.0, stored, whole), *kinds]


def _largest(rows: list[Any], key: str) -> float | None:
    values = [value for row in rows if (value := as_float(as_mapping(row).get(key))) is not None and value >= 0]
    return max(values, default=None)


def section(run: RunRecords, drawn: list[Plot]) -> Iterator[str]:
    """Yield a table of the bytes that a rank sends and stores, and the plot; nothing if no ranks were judged."""
    costs = costs_of(run)
    if not costs:
        return
    yield from ("## Several ranks", "")
    heads = ["ranks", "sent by rings", "sent, by the kernel", "closed form", "stored", "closed form of that"]
    yield from table(heads, [_cells(each) for each in costs], right=heads[1:])
    for plot in drawn:
        yield from embed(plot)


def _cells(each: Costs) -> list[str]:
    stored = sum(each.stored.values()) if each.stored else None
    numbers = (each.ring, each.wire, each.sent, stored, each.predicted)
    return [escape(KINDS.get(each.kind, each.kind)), *("" if n is None else Cell(memory(n), n) for n in numbers)]


def plot(run: RunRecords) -> Plot | None:
    """Return the plot of what ranks send and store; None if none were judged."""
    costs = costs_of(run)
    if not any(each.sent and each.stored for each in costs):
        return None
    return Plot(
        section=SECTION,
        name="ranks",
        headline=headline(costs),
        description=(
            "Left, the bytes that a rank sends in one step of two micro-batches: what its collectives would send as "
            "rings, and what the kernel has counted at its sockets. Right, what it stores. The black marks are closed "
            "forms."
        ),
        caption=provenance(run),
        height=3.7,
        draw=partial(draw, costs),
    )


def headline(costs: list[Costs]) -> str:
    """Return how far the measured bytes are from the closed forms, and what a rank stores less than one process."""
    data = next((each for each in costs if each.kind == "data" and each.wire and each.sent), None)
    sharded = next((each for each in costs if each.kind == "sharded" and each.stored), None)
    whole = next((sum(each.stored.values()) for each in costs if each.kind == ONE and each.stored), None)
    parts = []
    if data and data.wire and data.sent:
        parts.append(f"a data parallel rank sends {data.wire / data.sent:.3f} times the closed form of its gradient")
    if sharded and sharded.stored and whole:
        parts.append(f"a fully sharded one stores {sum(sharded.stored.values()) / whole:.3f} of what one process does")
    text = ", and ".join(parts) or "what ranks send and store"
    return text[0].upper() + text[1:]


def draw(costs: list[Costs], canvas: Canvas) -> None:
    """Draw the bytes sent and the bytes stored side by side."""
    left, right = canvas.panels([0.1, 0.1], left=0.85, above=0.62, below=0.35)
    for number, each in enumerate(costs):
        kind, sent = KINDS.get(each.kind, each.kind), memory(each.sent) or "no closed form"
        for shift, value, by in ((-0.2, each.ring, "rings"), (0.2, each.wire, "kernel")):
            if value is not None:
                wrong = each.sent is not None and value > WITHIN * max(each.sent, 1.0)
                (bar,) = left.bar(number + shift, value, 0.36, color=WRONG if wrong else COLOURS[by == "kernel"])
                name_points(bar, [f"{kind}, sent by the {by}: {memory(value)}; closed form {sent}"])
        _mark(left, number, each.sent)
        base = 0.0
        for part, size in (each.stored or {}).items():
            (bar,) = right.bar(number, size, 0.55, bottom=base, color=SHADES[part])
            name_points(bar, [f"{kind}, {PARTS[part]}: {memory(size)}"])
            base += size
        _mark(right, number, each.predicted)
    _legend(left, {"as rings": COLOURS[0], "counted by the kernel": COLOURS[1], "closed form": INK})
    _legend(right, {**{PARTS[part]: SHADES[part] for part in PARTS}, "closed form": INK})
    for axes, title in ((left, "Bytes a rank sends in a step"), (right, "Bytes a rank stores")):
        _style(axes, [KINDS.get(each.kind, each.kind).replace(" ", "\n") for each in costs])
        panel_title(axes, title)


def _mark(axes: Axes, number: int, value: float | None) -> None:
    if value is not None:
        axes.hlines(value, number - 0.44, number + 0.44, color=INK, linewidth=2.2, zorder=4)


def _legend(axes: Axes, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles = [Line2D([], [], color=c, linewidth=2.2) if c == INK else Patch(color=c) for c in colours.values()]
    axes.legend(
        handles,
        list(colours),
        loc="lower left",
        bbox_to_anchor=(-0.02, 1.11),  # above the panel's title
        ncols=len(colours),
        frameon=False,
        fontsize=7.5,
        handlelength=1.1,
        columnspacing=0.8,
        handletextpad=0.5,
    )


def _style(axes: Axes, names: list[str]) -> None:
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    axes.set_xticks(range(len(names)), names, size=8.5)
    axes.set_xlim(-0.6, len(names) - 0.4)
    axes.grid(visible=False, axis="x")
    top = axes.get_ylim()[1]
    axes.yaxis.set_major_locator(MultipleLocator(2.0 ** math.floor(math.log2(max(top, 4.0) / 3))))  # 512 KiB, 1 MiB
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: memory(value) if value else "0"))
    axes.tick_params(axis="y", labelcolor=GREY)
