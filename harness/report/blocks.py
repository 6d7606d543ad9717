"""The parts of a page. Each is its Markdown text, and has as attributes what the HTML page shows instead.

Sections yield Markdown lines and these blocks; `"\\n".join` makes the Markdown page of them, `report.html` the other.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Self

from harness.core.record_files import Row
from harness.report.plot import Plot


class Cell(str):
    """A cell of a table by whose `key` its column is sorted, not by its text: 900 µs comes before 1 ms."""

    key: float | None

    def __new__(cls, text: str, key: float | None) -> Self:
        """Return the cell. Its text is Markdown."""
        made = super().__new__(cls, text)
        made.key = key
        return made


class Table(str):
    """A table of escaped cells. `ids` has one anchor for each row, the same in every run; [] if rows have none.

    The Markdown has the first `most` rows, the HTML page has all of them. `right` names columns aligned to the right.
    """

    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    right: frozenset[str]
    ids: tuple[str, ...]

    def __new__(
        cls,
        heads: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        right: Sequence[str] = (),
        ids: Sequence[str] = (),
        most: int | None = None,
    ) -> Self:
        """Return the table; without rows in Markdown, its text is empty."""
        rule = ["---:" if head in right else "---" for head in heads]
        lines = ["| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows[:most]]]
        made = super().__new__(cls, "" if most == 0 else "\n".join(lines))
        made.heads, made.rows = tuple(heads), tuple(map(tuple, rows))
        made.right, made.ids = frozenset(right), tuple(ids)
        return made


class Figure(str):
    """A plot: in Markdown the picture beside the page, in HTML inside it."""

    plot: Plot

    def __new__(cls, markdown: str, plot: Plot) -> Self:
        """Return the figure of a plot."""
        made = super().__new__(cls, markdown)
        made.plot = plot
        return made


class Details(str):
    """Blocks that open with a click on `summary`, which must be escaped already. `id` is its anchor, if it has one."""

    summary: str
    blocks: tuple[str, ...]
    id: str

    def __new__(cls, summary: str, blocks: Iterable[str], *, id: str = "", markdown: str | None = None) -> Self:
        """Return the block. `markdown` is its text if that does not open with a click."""
        blocks = tuple(blocks)
        inner = "\n".join(blocks)
        if markdown is None:
            anchor = f'<a id="{id}"></a>\n\n' if id else ""
            markdown = f"{anchor}<details><summary>{summary}</summary>\n\n{inner}\n</details>" if inner.strip() else ""
        made = super().__new__(cls, markdown)
        made.summary, made.blocks, made.id = summary, blocks, id
        return made


class Anchor(str):
    """A place on the page that links lead to."""

    id: str

    def __new__(cls, id: str) -> Self:
        """Return the anchor."""
        made = super().__new__(cls, f'<a id="{id}"></a>')
        made.id = id
        return made


class Findings(str):
    """The findings of a diagnosis: in Markdown a table, in HTML each with the lines of the user's file."""

    findings: tuple[Row, ...]

    def __new__(cls, table: str, findings: Iterable[Row]) -> Self:
        """Return the block of these findings."""
        made = super().__new__(cls, table)
        made.findings = tuple(findings)
        return made


class Missing(str):
    """The only line of a section without data. The HTML page lists such sections at its end."""


class Beside(str):
    """A line about files beside the page. The HTML page, which is passed on alone, leaves it out."""
