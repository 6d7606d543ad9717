"""Lenient access to the values of a record: what has another type than expected is read as empty.

A report must also be made from records of other versions and of runs that died, so it never raises on their shape.
"""

from __future__ import annotations

import json
import math
from typing import Any

from harness.core.record_files import Row


def as_mapping(value: Any) -> Row:
    """Return `value` if it is a mapping, otherwise an empty one."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return `value` if it is a list, otherwise an empty one."""
    return value if isinstance(value, list) else []


def mappings(value: Any) -> list[Row]:
    """Return the mappings in a list; an empty list for anything else."""
    return [row for row in as_list(value) if isinstance(row, dict)]


def as_float(value: Any) -> float | None:
    """Return a finite number as a float; None for anything else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        found = float(value)
    except OverflowError:  # JSON has integers of any size
        return None
    return found if math.isfinite(found) else None


def as_cell(value: Any) -> Any:
    """Return a scalar as it is, and anything nested as JSON."""
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else value
