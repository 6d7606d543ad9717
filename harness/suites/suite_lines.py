"""The lines of a suite file, which tomllib does not give: they locate the mistakes in it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from harness.core.errors import SuiteError, did_you_mean


class SuiteLines:
    """The line numbers of the keys in the tables `[[table]]` of a suite file."""

    def __init__(self, path: Path, text: str, table: str = "check") -> None:
        self.path, self.text, self.table = path, text, table
        self.lines = text.splitlines()
        headers = {n: re.match(r"\s*\[\[\s*(\w+)\s*\]\]", line) for n, line in enumerate(self.lines, 1)}
        self.headers = [number for number, found in headers.items() if found]
        self.starts = [number for number, found in headers.items() if found and found.group(1) == table]

    def of(self, index: int, word: str | None = None) -> int:
        """Return the line of `word` within the index-th table, or the line of its header."""
        start = self.starts[index] if index < len(self.starts) else 1
        stop = next((number for number in self.headers if number > start), len(self.lines) + 1)
        if word is not None:
            for number in range(start, stop):
                if re.search(rf"\b{re.escape(word)}\b", self.lines[number - 1].split("#")[0]):
                    return number
        return start

    def first(self, word: str, default: int = 1) -> int:
        """Return the first line of the file that contains `word`, or `default`."""
        return next((n for n, text in enumerate(self.lines, 1) if re.search(rf"\b{re.escape(word)}\b", text)), default)

    def error(self, index: int, word: str | None, message: str) -> SuiteError:
        """Return a SuiteError that begins with the file and the line of `word`."""
        return SuiteError(f"{self.path}:{self.of(index, word)}: {message}")

    def refuse_unknown(self, table: Mapping[str, Any], known: Iterable[str], what: str) -> None:
        """Raise SuiteError for a key of the file's own tables that is not known; `what` describes it in the message."""
        for key in table:
            if key not in known:
                raise SuiteError(f"{self.path}:{self.first(key)}: unknown {what} '{key}'; {did_you_mean(key, known)}")
