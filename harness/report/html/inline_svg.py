"""A picture of matplotlib as SVG inside a page: no id of another picture, selectable text, and values at its points."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from harness.report.point_values import MARK

SVG, LINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}href"
REACH = "7"  # points around a mark within which the pointer finds it
DECIMALS = re.compile(r"(\.\d\d)\d+")  # a hundredth of a point is finer than any screen
REFERENCE = re.compile(r"url\(#([^)]+)\)")
# Verdana has the widths of DejaVu Sans, in which matplotlib has placed the text.
FONT = "'DejaVu Sans', Verdana, sans-serif"


def inline_svg(text: str, *, name: str, title: str, description: str) -> str:
    """Return the SVG of a figure as an element of an HTML page.

    Args:
        text: the file that matplotlib has written.
        name: of the picture on its page; its ids begin with it.
        title: what the picture shows, for those who hear the page.
        description: how to read it, for the same.
    """
    ElementTree.register_namespace("", SVG[1:-1])
    root = ElementTree.fromstring(text)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith(("}metadata", "}RDF")):
                parent.remove(child)
    _show_values(root)
    _rename_ids(root, name)
    for element in root.iter():
        if "style" in element.attrib:
            element.set("style", _with_fonts(element.get("style", "")))
        for key in {"d", "x", "y", "cx", "cy", "transform"} & set(element.attrib):
            element.set(key, DECIMALS.sub(r"\1", element.get(key, "")))
    for key in ("width", "height", "version"):
        root.attrib.pop(key, None)
    root.attrib |= {"class": "plot", "role": "img", "aria-labelledby": f"{name}-title {name}-desc"}
    for place, (tag, words) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(SVG + tag, {"id": f"{name}-{tag}"})
        element.text = words
        root.insert(place, element)
    return ElementTree.tostring(root, encoding="unicode")


def _show_values(root: ElementTree.Element) -> None:
    """Wrap each mark that has a text in a group with it and with a larger transparent disc for the pointer."""
    for group in root.iter(SVG + "g"):
        if not group.get("id", "").startswith(MARK):
            continue
        texts = json.loads(group.attrib.pop("id").removeprefix(MARK))
        marks = list(_marks(group))
        if len(marks) != len(texts):  # a point beyond the axes is not drawn, and which one it is cannot be seen here
            continue
        styles = {mark.get("style", "") for _, mark in marks}
        for (parent, mark), text in zip(marks, texts, strict=True):
            if len(styles) == 1 and parent.tag == SVG + "g":  # said once for all of them
                parent.set("style", mark.attrib.pop("style", ""))
            place = list(parent).index(mark)
            parent.remove(mark)
            wrapped = ElementTree.Element(SVG + "g", {"class": "value"})
            ElementTree.SubElement(wrapped, SVG + "title").text = text
            wrapped.append(mark)
            if mark.tag == SVG + "use":
                at = {"cx": mark.get("x", "0"), "cy": mark.get("y", "0"), "r": REACH}
                ElementTree.SubElement(wrapped, SVG + "circle", {**at, "fill": "transparent", "stroke": "none"})
            parent.insert(place, wrapped)


def _marks(group: ElementTree.Element) -> Iterator[tuple[ElementTree.Element, ElementTree.Element]]:
    """Yield each mark of a line, or the bar of a patch, after its parent."""
    found = [(parent, child) for parent in group.iter() for child in parent if child.tag == SVG + "use"]
    yield from found or [(group, child) for child in group if child.tag == SVG + "path"]


def _rename_ids(root: ElementTree.Element, name: str) -> None:
    """Put the picture's name before the ids that are used, and remove the others."""
    used: set[str] = set()
    for element in root.iter():
        if LINK in element.attrib:
            target = element.attrib.pop(LINK).removeprefix("#")
            element.set("href", f"#{name}-{target}")
            used.add(target)
        for key, value in element.attrib.items():
            used |= set(REFERENCE.findall(value))
            element.set(key, REFERENCE.sub(rf"url(#{name}-\1)", value))
    for element in root.iter():
        own = element.attrib.pop("id", None)
        if own in used:
            element.set("id", f"{name}-{own}")


def _with_fonts(style: str) -> str:
    return re.sub(r"(font(?:-family)?:[^;]*?)'DejaVu Sans'[^;]*", rf"\1{FONT}", style)
