"""The settings in a program's configuration files: YAML, JSON and TOML, as `name: value` and `name = value`.

They are replaced in memory, as the literals of its source are: what the program opens is the file with other values.
"""

from __future__ import annotations

import ast
import builtins
import io
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

SUFFIXES = frozenset((".yaml", ".yml", ".json", ".toml"))
LARGEST = 2**16  # bytes: a longer file has data, such as a vocabulary
COMMENT = re.compile(r"(^|\s)#.*")
ENTRY = re.compile(
    r"""(?P<quote>["']?)\b(?P<name>[A-Za-z_][\w-]*)(?P=quote)\s*[:=]\s*"""
    r"""(?P<value>"[^"]*"|'[^']*'|[^\s,:={}\[\]"'#]+)(?=\s*(?:[,}]|$))"""
)
Place = tuple[int, int]  # the line and the column where a value begins


def entries(file: Path) -> Iterator[tuple[str, Any, Place]]:
    """Yield the name, the value and the place of each entry of a configuration file that has one plain value."""
    try:
        text = file.read_text(encoding="utf-8") if file.stat().st_size <= LARGEST else ""
    except (OSError, UnicodeDecodeError):
        return
    for number, line in enumerate(text.splitlines(), 1):
        for entry in ENTRY.finditer(COMMENT.sub("", line)):
            yield entry["name"], _value(entry["value"]), (number, entry.start("value"))


def with_values(text: str, values: Mapping[Place, Any]) -> str:
    """Return the text of a configuration file with the values at these places replaced."""
    lines = text.splitlines(keepends=True)
    for (number, column), value in sorted(values.items(), reverse=True):
        line = lines[number - 1]
        found = next(entry for entry in ENTRY.finditer(COMMENT.sub("", line)) if entry.start("value") == column)
        lines[number - 1] = f"{line[:column]}{_written(value)}{line[found.end('value') :]}"
    return "".join(lines)


def replace_on_opening(files: Mapping[str, Sequence[tuple[int, int, Any]]]) -> None:
    """Let `open` read these files, named by their real paths, with other values. It stays so in this process."""
    original = io.open

    def opened(file: Any, mode: str = "r", *args: Any, **options: Any) -> IO[Any]:
        values = files.get(os.path.realpath(file)) if isinstance(file, str | os.PathLike) else None
        if not values or set(mode) & set("wax+"):
            return original(file, mode, *args, **options)
        with original(file, encoding="utf-8") as source:
            text = with_values(source.read(), {(line, column): value for line, column, value in values})
        return io.BytesIO(text.encode()) if "b" in mode else io.StringIO(text)

    builtins.open = io.open = opened  # type: ignore[assignment]  # pathlib opens files by the second


def _value(text: str) -> Any:
    """Return a value as YAML 1.2 reads it: a number, a truth value, and else a text."""
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text
    return value if isinstance(value, int | float | str) else text


def _written(value: Any) -> str:
    """Return a value as YAML, JSON and TOML read it: YAML 1.1 knows `1e-08` as a text, and `1.0e-08` as a number."""
    text = json.dumps(value)
    return re.sub(r"^(-?\d+)e", r"\1.0e", text) if isinstance(value, float) else text
