"""A text file that is written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, text: str, *, errors: str = "strict") -> None:
    """Write `text` to `path` in one step, so that no reader sees half a file, whatever interrupts the writing.

    `errors` says what becomes of a character that UTF-8 cannot encode, as in `str.encode`.
    """
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fresh.write_text(text, encoding="utf-8", errors=errors)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
