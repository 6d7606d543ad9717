"""Markdown of the report as HTML. Nothing of a record can become markup: HTML in it is text, and links stay inside."""

from __future__ import annotations

import functools
import html
import re
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.rules_inline import StateInline

# What the report's Markdown has no use for is not parsed, so that it cannot be made by a name or a message.
UNUSED = (
    *("image", "autolink", "html_inline"),  # of a line
    *("reference", "html_block", "code", "fence", "blockquote", "hr", "lheading"),  # of several
)
CODE = re.compile(r"<code>([^<]*)</code>")


def inline(text: str) -> Markup:
    """Return one line of Markdown as HTML, as the cells of tables and headings are."""
    # `markdown.escape` leaves no `<`, so these are of the report.
    return Markup("<br>").join(Markup(parser().renderInline(line)) for line in text.split("<br>"))


def block(text: str) -> Markup:
    """Return paragraphs and lists of Markdown as HTML."""
    return Markup(parser().render(text))


def as_text(rendered: str) -> str:
    """Return the text of rendered HTML."""
    return html.unescape(re.sub(r"<[^>]+>", "", rendered))


@functools.cache
def parser() -> MarkdownIt:
    """Return the parser. A link that leads out of the page is not one."""
    from markdown_it import MarkdownIt

    made = MarkdownIt("commonmark", {"html": False}).disable(UNUSED)
    made.validateLink = lambda url: url.startswith("#")  # type: ignore[method-assign]  # markdown-it's way to set it
    made.inline.ruler.before("backticks", "code_element", code_element)
    return made


def code_element(state: StateInline, silent: bool) -> bool:
    """Parse `<code>a&#124;b</code>`, which `markdown.code` writes for what backticks cannot contain."""
    match = CODE.match(state.src, state.pos)
    if not match:
        return False
    if not silent:
        state.push("code_inline", "code", 0).content = html.unescape(match[1])
    state.pos = match.end()
    return True
