"""The blocks of a page as what the template shows: headings with anchors, text, tables, figures, findings."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from harness.core.record_files import Row
from harness.report.blocks import Anchor, Beside, Cell, Details, Figure, Findings, Missing, Table
from harness.report.formatting import plain, slug
from harness.report.html.inline_markdown import as_text, block, inline
from harness.report.html.inline_svg import inline_svg
from harness.report.json_values import as_list, as_mapping
from harness.report.markdown import plot_anchor, prose

HEADING = re.compile(r"^(#{1,6}) (.*)$")
INTERVAL = re.compile(r"\[([-\d.]+), ([-\d.]+)\]")
DEEPEST = 6
RESERVED = ("content", "results", "tip", "not-in-this-report")  # ids of the template


@dataclass
class Item:
    """One part of the page: its kind, which is the name of a macro of the template, and what that shows."""

    kind: str
    id: str = ""
    level: int = 0
    html: Markup = field(default_factory=Markup)
    more: dict[str, Any] = field(default_factory=dict)


class Contents:
    """Turns blocks into items. It remembers the ids of the page, which must differ, and the heading above a table."""

    def __init__(self) -> None:
        self.ids = set(RESERVED)
        self.heading = ""

    def items(self, blocks: Iterable[str], *, deeper: int = 0) -> list[Item]:
        """Return the items of some blocks, the headings `deeper` than they say."""
        return list(self._items(blocks, deeper))

    def unique(self, wanted: str) -> str:
        """Return this id, with a number if the page has it already."""
        found, number = wanted, 2
        while found in self.ids:
            found, number = f"{wanted}-{number}", number + 1
        self.ids.add(found)
        return found

    def _items(self, blocks: Iterable[str], deeper: int) -> Iterator[Item]:
        lines: list[str] = []
        for each in [*blocks, Anchor("")]:  # the last one ends the text before it
            heading = HEADING.match(each) if type(each) is str else None
            if type(each) is str and not heading:
                lines.append(each)
                continue
            if text := "\n".join(lines).strip():
                yield Item("text", html=block(text))
            lines = []
            if heading:
                yield self._heading(heading, deeper)
            elif isinstance(each, Anchor) and each.id:
                yield Item("anchor", self.unique(each.id))
            elif not isinstance(each, (Anchor, Beside)):
                yield self._block(each, deeper)

    def _heading(self, heading: re.Match[str], deeper: int) -> Item:
        title = inline(heading[2])
        self.heading = as_text(title)
        level = min(DEEPEST, len(heading[1]) + deeper)
        return Item("heading", self.unique(slug(self.heading)), level, title, {"title": self.heading})

    def _block(self, each: str, deeper: int) -> Item:
        if isinstance(each, Table):
            return Item("table", more={"caption": self.heading, "heads": heads(each), "rows": self._rows(each)})
        if isinstance(each, Figure):
            return self._figure(each)
        if isinstance(each, Details):
            own = self.unique(each.id) if each.id else ""
            inner = self.items(each.blocks, deeper=deeper)
            long = any(isinstance(part, Table) and not part for part in each.blocks)
            return Item("details", own, html=inline(each.summary), more={"items": inner, "long": long})
        if isinstance(each, Missing):
            return Item("missing", html=inline(each))
        if isinstance(each, Findings):
            return Item("findings", more={"findings": [self._finding(found) for found in each.findings]})
        raise TypeError(f"{type(each).__name__} is no block that the HTML page knows")

    def _rows(self, table: Table) -> list[tuple[str, list[tuple[Markup, float | None]]]]:
        ids = [self.unique(each) for each in table.ids] or [""] * len(table.rows)
        return [(own, [cell(text) for text in row]) for own, row in zip(ids, table.rows, strict=True)]

    def _figure(self, figure: Figure) -> Item:
        plot = figure.plot
        name = self.unique(plot_anchor(plot))
        title, description, caption = (plain(text, 1000) for text in (plot.title, plot.description, plot.caption))
        svg = inline_svg(plot.svg(), name=name, title=title, description=description)
        more = {"title": title, "description": description, "caption": caption}
        return Item("figure", name, html=Markup(svg), more=more)

    def _finding(self, found: Row) -> dict[str, Any]:
        """Return a finding as text and HTML; `lines` are (number, text, whether it is the line)."""
        source = plain(found.get("source") or "")
        return {
            "id": self.unique(f"finding-{slug(found.get('fault') or found.get('where'))}"),
            "cause": inline(prose(found.get("cause") or "")),
            "evidence": inline(prose(found.get("evidence") or "", 1000)),
            **{key: plain(found.get(key) or "") for key in ("where", "fault")},
            "source": source,
            "lines": user_lines(found, source),
            "explains": found.get("explains") if isinstance(found.get("explains"), int) else 0,
            "declared": bool(found.get("declared")),
        }


def user_lines(found: Row, source: str) -> list[tuple[int | None, str, bool]]:
    """Return the lines of the user's file around a finding; its line alone from records that have no others."""
    excerpt = as_mapping(found.get("excerpt"))
    number = source.rpartition(":")[2]
    at = int(number) if number.isdecimal() else None
    first, lines = excerpt.get("first"), [str(line) for line in as_list(excerpt.get("lines"))]
    if isinstance(first, int) and lines:
        return [(first + index, visible(line), first + index == at) for index, line in enumerate(lines)]
    text = plain(found.get("text") or "")
    return [(at, text, True)] if text else []


def visible(line: str) -> str:
    """Return a line of source with its indentation, without control characters."""
    bare = line.lstrip(" ")
    return " " * (len(line) - len(bare)) + plain(bare)


def heads(table: Table) -> list[tuple[Markup, bool]]:
    """Return the heads of a table, each with whether its column is aligned to the right."""
    return [(inline(head), head in table.right) for head in table.heads]


def cell(text: str) -> tuple[Markup, float | None]:
    """Return a cell, in which an interval stays on one line, and the number that it is sorted by, if it has one."""
    return inline(INTERVAL.sub("[\\1,\N{NO-BREAK SPACE}\\2]", text)), text.key if isinstance(text, Cell) else None


def without_empty(items: Sequence[Item]) -> tuple[list[Item], list[Markup]]:
    """Return the items without the sections that only say what is missing, and what those say."""
    kept: list[Item] = []
    for item, after in zip(items, [*items[1:], None], strict=True):
        alone = after is None or (after.kind == "heading" and after.level <= 2)
        if item.kind == "missing" and alone and kept and kept[-1].kind == "heading":
            kept.pop()
        if item.kind != "missing":
            kept.append(item)
    return kept, [item.html for item in items if item.kind == "missing"]


def outline(items: Sequence[Item]) -> list[Item]:
    """Return the headings of the second level, for the navigation."""
    return [item for item in items if item.kind == "heading" and item.level == 2]
