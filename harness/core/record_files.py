"""Record files: JSON lines, with a header (the environment), one row per record, and a footer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from harness.core.errors import HarnessError

SCHEMA = 1
NOT_FINITE = ("nan", "inf", "-inf")  # numbers that JSON does not have
DEEPEST = 100  # lists and objects within one another; Python's own limit changes while a program runs
Row = dict[str, Any]  # one JSON row of a record file: a header, a record or a footer


def encode(value: Any) -> Any:
    """Return `value` as JSON can represent it: NaN and the infinities become {"float": "nan" | "inf" | "-inf"}.

    Tuples become lists, keys become strings, and objects of other types become their `str`.
    """
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [encode(item) for item in value]
    if isinstance(value, str | int | float | bool) or value is None:
        return value
    return str(value)


def decode(value: Any, *, depth: int = 0) -> Any:
    """Return the value that `encode` was given, for values that JSON can represent, NaN and the infinities.

    Raises ValueError for a float that `encode` does not write, and for what is nested deeper than DEEPEST.
    """
    if depth > DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if isinstance(value, dict):
        if set(value) == {"float"}:
            if value["float"] not in NOT_FINITE:
                raise ValueError(f"a float is one of {', '.join(NOT_FINITE)}, found {str(value['float'])[:40]}")
            return float(value["float"])
        return {key: decode(item, depth=depth + 1) for key, item in value.items()}
    return [decode(item, depth=depth + 1) for item in value] if isinstance(value, list) else value


def comparison_label(comparison: str, metric: str, axis: str | None, point: int | None) -> str:
    """Return the label of a comparison at one of its points, as `attention forward, tokens=512`."""
    return f"{comparison} {metric}" + ("" if point is None else f", {axis}={point}")


def age(path: Path) -> tuple[str, int]:
    """Return the sort key of a record file: the time in its name, then the number behind it."""
    _, stamp, again = [*path.stem.split("-"), "0"][:3]
    return stamp, int(again) if again.isdecimal() else 0


def read(path: Path) -> list[Row]:
    """Return every row of a record file: the header, the records and, after a complete run, the footer.

    A last line that is incomplete is dropped: the run was killed while writing it.

    Raises `HarnessError`, with the number of the line, for any other line that is not a JSON object, a first row that
    is not a header, and another schema.
    """
    # Not splitlines: that also splits at separators (U+2028) which JSON leaves unescaped in a string.
    lines = path.read_text(encoding="utf-8", errors="backslashreplace").removesuffix("\n").split("\n")
    rows: list[Row] = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(_row(line))
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise HarnessError(
                f"{path}:{number}: not a JSON line of a record ({error}); the file was edited or damaged"
            ) from error
    if not rows or rows[0].get("kind") != "header":
        raise HarnessError(f"{path}:1: expected a header row; this is not a record file of gpt-harness")
    if rows[0].get("schema") != SCHEMA:
        raise HarnessError(f"{path}:1: schema {rows[0].get('schema')!r}, this version reads {SCHEMA}")
    return rows


def _row(line: str) -> Row:
    row = decode(json.loads(line))
    if not isinstance(row, dict):
        raise ValueError(f"expected an object, found {type(row).__name__}")
    return row


class RecordWriter:
    """Writes the record file of one run, line by line, so that a run that is killed leaves its results.

    Raises `FileExistsError` when the file exists.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.header = path, header
        self.counts: dict[str, int] = {}
        self._file: IO[bytes] = path.open("xb", buffering=0)
        try:
            self._write({"kind": "header", "schema": SCHEMA, **header})
        except OSError:  # a full disk: an empty file would be no record file
            self._file.close()
            path.unlink(missing_ok=True)
            raise

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a record; it is in the file when this returns."""
        self._write(row)
        verdict = row.get("verdict")
        if verdict is not None:
            self.counts[verdict] = self.counts.get(verdict, 0) + 1

    def close(self, footer: Mapping[str, Any]) -> None:
        """Append the footer, which marks the run as complete, and close the file."""
        with self._file:
            self._write({"kind": "footer", "counts": self.counts, **footer})

    def _write(self, row: Mapping[str, Any]) -> None:
        """Append a line, whole or not at all: half a line of a full disk would spoil the file for every reader."""
        text = json.dumps(encode(row), ensure_ascii=False, allow_nan=False) + "\n"
        # A path or a message may contain an unpaired surrogate; writing must not fail on it.
        line = text.encode("utf-8", "backslashreplace")
        before = self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError:
            self._file.truncate(before)
            self._file.seek(before)
            raise
