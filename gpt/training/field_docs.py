"""The documentation of the configuration's fields, read from its source."""

import ast
import inspect
import re
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, cast

from gpt.training.config import TrainConfig


@dataclass(frozen=True)
class FieldDoc:
    """One field of `TrainConfig`: its name, type and default, its docstring, and the comment that heads its group."""

    name: str
    type: type
    default: bool | int | float | str
    text: str
    heading: str


@lru_cache(maxsize=1)
def field_docs() -> tuple[FieldDoc, ...]:
    """Return every field in order. A docstring is the string below a field, a heading a comment of its own line."""
    source = inspect.getsource(TrainConfig)
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    texts: dict[str, str] = {}
    lines: dict[str, int] = {}
    for node, below in zip(tree.body, [*tree.body[1:], None], strict=True):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            lines[node.target.id] = node.lineno
            if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                texts[node.target.id] = inspect.cleandoc(str(below.value.value))
    headings = {
        number: found[1]
        for number, line in enumerate(source.splitlines(), start=1)
        if (found := re.fullmatch(r"    # (.+)", line))
    }
    return tuple(
        FieldDoc(
            name=field.name,
            type=field.type if isinstance(field.type, type) else str,
            default=cast(Any, field.default),  # every field has one
            text=texts.get(field.name, ""),
            heading=_last_before(lines[field.name], headings),
        )
        for field in fields(TrainConfig)
    )


def _last_before(line: int, headings: dict[int, str]) -> str:
    return headings[max(number for number in headings if number < line)]
