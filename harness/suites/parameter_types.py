"""The parameters that a suite gives to a measure, validated against the measure's signature."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, get_args, get_origin

from harness.core.errors import did_you_mean
from harness.core.sizes import SIZES
from harness.suites.measure_registry import Measure
from harness.suites.suite_lines import SuiteLines

# Whole numbers that may be 0. All others count something: with zero rows, or four times less, a check compares nothing.
MAY_BE_ZERO = {"seed", "top_k", "steps", "point", "prompt"}


def validate_parameters(measure: Measure, parameters: Mapping[str, Any], lines: SuiteLines, index: int) -> None:
    """Raise SuiteError if the measure does not accept the parameters."""
    for key, value in parameters.items():
        if key not in measure.parameters:
            raise lines.error(
                index,
                key,
                f"unknown parameter '{key}' of {measure.name}; {did_you_mean(key, measure.parameters)}",
            )
        if not _has_type(value, measure.types[key]):
            raise lines.error(
                index,
                key,
                f"parameter {key} of {measure.name}: expected {_type_name(measure.types[key])}, found {value!r}",
            )
        if key == "size" and value not in SIZES:
            raise lines.error(index, str(value), f"unknown size '{value}'; {did_you_mean(value, SIZES)}")
        if (expected := _range_error(key, value, measure.types[key])) is not None:
            raise lines.error(index, key, f"parameter {key} of {measure.name}: expected {expected}, found {value!r}")
        if key in measure.names and value not in (known := list(measure.names[key].names())):
            raise lines.error(index, str(value), f"unknown {key} '{value}'; {did_you_mean(value, known)}")
    if missing := measure.required - set(parameters):
        raise lines.error(index, "parameters", f"{measure.name} needs the parameter '{sorted(missing)[0]}'")


def _range_error(key: str, value: Any, hint: Any) -> str | None:
    """Return the range that a number, or one of a list, is outside of; None if it is in range, or no number."""
    numbers = value if isinstance(value, list) else [value]
    least = 0 if key in MAY_BE_ZERO else 1
    if hint in (int, list[int]) and not all(least <= each < 2**63 for each in numbers):
        return f"{least} or more, in 64 bits"
    if hint in (float, list[float]) and not all(abs(each) <= sys.float_info.max for each in numbers):
        return "a finite number"
    return None


def _has_type(value: Any, hint: Any) -> bool:
    """Return True if the TOML value is of the annotated type of a measure's parameter."""
    origin = get_origin(hint)
    if origin is not None and str(origin) == "typing.Literal":
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if get_args(hint):
        return any(_has_type(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if str(get_origin(hint)) == "typing.Literal":
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint))
