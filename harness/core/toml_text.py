"""TOML files that people write, read with a named error for whatever is wrong with them."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError


def read_toml(path: Path, error: type[HarnessError] = HarnessError) -> tuple[str, dict[str, Any]]:
    """Return the text of a TOML file, without a byte order mark, and the values in it.

    Raises `error`, beginning with `file:line:`, if it cannot be read, is not UTF-8, is not TOML, or has numbers or
    tables that Python does not read.
    """
    try:
        data = path.read_bytes()
    except OSError as missing:
        raise error(f"{path}:1: cannot be read: {missing.strerror}") from None
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = 1 + data.count(b"\n", 0, wrong.start)
        raise error(f"{path}:{line}: not UTF-8: {wrong.reason} at byte {wrong.start}; save it as UTF-8") from None
    try:
        return text, tomllib.loads(text)
    except tomllib.TOMLDecodeError as wrong:
        found = re.search(r"line (\d+)", str(wrong))
        last = text.count("\n") + 1  # "at end of document"
        raise error(f"{path}:{found.group(1) if found else last}: not TOML: {wrong}") from None
    except RecursionError:
        deepest = max(enumerate(text.splitlines(), 1), key=lambda line: line[1].count("[") + line[1].count("{"))[0]
        raise error(f"{path}:{deepest}: lists or tables are nested too deep to be read") from None
    except ValueError:  # not of TOML, which allows them, but of Python
        most = sys.get_int_max_str_digits()
        long = re.search(rf"\d[\d_]{{{most},}}", text)
        line = 1 + text.count("\n", 0, long.start()) if long else 1
        raise error(f"{path}:{line}: a number has more than {most} digits") from None
