"""The Markdown of the page: escaped text, code, tables, figures and links, each safe whatever the text holds."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence

from harness.report.figure import Plot
from harness.report.wording import LONGEST, plain

LONGEST_TABLE = 40  # rows of a table on the page; all rows are in its CSV

# Every character that Markdown or HTML could read as markup, as an entity. `_` within a word and `[` alone
# stay: no reader takes them for markup, and the page is readable as plain text too.
_ENTITIES = {character: f"&#{ord(character)};" for character in "\\`*|$"} | {
    "&": "&amp;",
    "<": "&lt;",
    ">": "&gt;",
}
_MARKUP = re.compile(r"[\\`*|$&<>]|(?<![^\W_])_|_(?![^\W_])|(?<=~)~|(?<=\])[(\[:]|(?<=\[)[\^!]")


def escape(value: object, longest: int = LONGEST) -> str:
    """Text that Markdown and HTML show as it is, in a paragraph and in a table."""
    return escaped(plain(value, longest))


def escaped(line: str) -> str:
    """The markup characters of one line as entities, its spaces kept."""
    return _MARKUP.sub(lambda match: _ENTITIES.get(match[0], f"&#{ord(match[0])};"), line)


def prose(value: object, longest: int = LONGEST) -> str:
    """Escaped text in which pairs of backticks still make code."""
    parts = plain(value, longest).split("`")
    if len(parts) % 2 == 0:
        return escape(value, longest)
    return "".join(code(part) if index % 2 else escaped(part) for index, part in enumerate(parts))


def code(value: object) -> str:
    """Text as code, in a paragraph and in a table."""
    text = plain(value, longest=1000)
    if not text:
        return ""
    return f"<code>{escape(text, longest=1000)}</code>" if re.search(r"[`|\\]", text) else f"`{text}`"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, right: Sequence[str] = ()) -> list[str]:
    """A Markdown table of cells that are escaped already, the columns named in `right` aligned to the right."""
    rule = ["---:" if head in right else "---" for head in heads]
    return ["| " + " | ".join(cells) + " |" for cells in [heads, rule, *rows]] + [""]


def folded(summary: str, lines: Iterable[str]) -> Iterator[str]:
    """Lines that the reader opens with a click; `summary` is escaped already."""
    yield from (f"<details><summary>{summary}</summary>", "", *lines, "</details>", "")


def figure(plot: Plot) -> Iterator[str]:
    """A figure, its finding as the text for those who do not see it, and below it what to look for."""
    yield from (f'<a id="{anchor(plot)}"></a>', "", f"![{escape(plot.title)}](plots/{plot.name}.png)", "")
    yield from (f"{plot.look} ([SVG](plots/{plot.name}.svg))", "")


def anchor(plot: Plot) -> str:
    """Where on the page a figure is."""
    return f"figure-{plot.name}"


def csv(name: str) -> str:
    """A link to a table."""
    return f"[{name}.csv](tables/{name}.csv)"


def rest(rows: int, name: str, what: str = "All rows") -> Iterator[str]:
    """Where the whole table is, and how much of it the page left out."""
    left_out = f" ({rows - LONGEST_TABLE} of {rows} are only there)" if rows > LONGEST_TABLE else ""
    yield from (f"{what}{left_out}: {csv(name)}.", "")


def missing(what: str, command: str) -> Iterator[str]:
    """A section without data, in one line: what is missing and the command that would fill it."""
    yield from (f"{what}: {code(command)} does it.", "")
