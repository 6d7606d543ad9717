"""The Markdown of the page: escaped text, code, tables, plots and links, safe for any content."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report.blocks import Beside, Details, Figure, Missing, Table
from harness.report.formatting import LONGEST, plain
from harness.report.plot import Plot

LONGEST_TABLE = 40  # rows of a table on the page; all rows are in its CSV

# Every character that Markdown or HTML could read as markup, as an entity. `_` within a word and `[` alone
# stay: no parser takes them for markup, and the page is readable as plain text too.
_ENTITIES = {character: f"&#{ord(character)};" for character in "\\`*|$"} | {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}
_MARKUP = re.compile(r"[\\`*|$&<>]|(?<![^\W_])_|_(?![^\W_])|(?<=~)~|(?<=\])[(\[:]|(?<=\[)[\^!]")


def escape(value: object, longest: int = LONGEST) -> str:
    """Return text that Markdown and HTML show as it is, in a paragraph and in a table."""
    return escape_line(plain(value, longest))


def escape_line(line: str) -> str:
    """Return one line with its markup characters as entities and its spaces unchanged."""
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"&#{ord(match[0])};"), line)


def prose(value: object, longest: int = LONGEST) -> str:
    """Return escaped text in which pairs of backticks still make code."""
    parts = plain(value, longest).split("`")
    if len(parts) % 2 == 0:
        return escape(value, longest)
    return "".join(code(part) if index % 2 else escape_line(part) for index, part in enumerate(parts))


def code(value: object) -> str:
    """Return text as code, for a paragraph or a table."""
    text = plain(value, longest=1000)
    if not text:
        return ""
    # Between backticks an entity would be shown as typed, and `|` would end a cell of a table.
    return f"<code>{escape(text, longest=1000)}</code>" if re.search(r"[`|\\]", text) else f"`{text}`"


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    right: Sequence[str] = (),
    ids: Sequence[str] = (),
    most: int | None = None,
) -> list[str]:
    """Return a table of escaped cells and the empty line after it; the arguments are those of `blocks.Table`."""
    return [Table(heads, rows, right=right, ids=ids, most=most), ""]


def collapsed(summary: str, lines: Iterable[str]) -> Iterator[str]:
    """Yield lines that open with a click on `summary`, which must be escaped already."""
    yield from (Details(summary, lines), "")


def embed(plot: Plot) -> Iterator[str]:
    """Yield a plot with its headline as the alternative text, and below it its description."""
    lines = (
        f'<a id="{plot_anchor(plot)}"></a>',
        "",
        f"![{escape(plot.title)}](plots/{plot.name}.png)",
        "",
        f"{plot.description} ([SVG](plots/{plot.name}.svg))",
    )
    yield from (Figure("\n".join(lines), plot), "")


def plot_anchor(plot: Plot) -> str:
    """Return the anchor of a plot on the page."""
    return f"figure-{plot.name}"


def csv_link(name: str) -> str:
    """Return a link to a table."""
    return f"[{name}.csv](tables/{name}.csv)"


def link_to_all_rows(rows: int, name: str, what: str = "All rows") -> Iterator[str]:
    """Yield the link to the complete table, and how many of its rows the page leaves out."""
    left_out = f" ({rows - LONGEST_TABLE} of {rows} are only there)" if rows > LONGEST_TABLE else ""
    yield from (Beside(f"{what}{left_out}: {csv_link(name)}."), "")


def missing(what: str, command: str) -> Iterator[str]:
    """Yield the line of a section without data: what is missing, and the command that fills it."""
    yield from (Missing(f"{what}: run {code(command)}."), "")
