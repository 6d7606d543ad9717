"""Expectations: each is a comparator with its value, and a check has exactly one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.core.errors import did_you_mean
from harness.suites.measure_registry import Reading, Scalar

DTYPES = ("float64", "float32", "bfloat16", "float16")
SHOWN = 2  # places that a message quotes with their values; `where` names the others
# From the strictest to the one that never passes; `noise = "rounding"` accepts "equal" as well.
NOISE_WORDS = ("equal", "rounding", "different")


@dataclass(frozen=True)
class Judgement:
    """The result of comparing a reading with an expectation: both sides as text, and the places that failed."""

    passed: bool
    found: str
    expected: str
    where: list[str] = field(default_factory=list)


def _equals(found: Scalar, expected: Any) -> bool:
    # True == 1 in Python; a check of a count must not pass for a boolean.
    return isinstance(found, bool) == isinstance(expected, bool) and bool(found == expected)


def _close_to(found: Scalar, expected: Any) -> bool:
    value: float = expected["value"]
    allowed: float = expected["abs"] if "abs" in expected else abs(value) * expected["rel"]
    return abs(_number(found) - value) <= allowed


def _noise(found: Scalar, expected: Any) -> bool:
    return found in NOISE_WORDS and NOISE_WORDS.index(str(found)) <= NOISE_WORDS.index(expected)


def _number(found: Scalar) -> float:
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else math.nan


# Each compares one value. `near_predicted` is not among them: it compares every place with its own prediction.
COMPARATORS: dict[str, Callable[[Scalar, Any], bool]] = {
    "equals": _equals,
    "one_of": lambda found, expected: any(_equals(found, each) for each in expected),
    "at_most": lambda found, expected: _number(found) <= expected,
    "at_least": lambda found, expected: _number(found) >= expected,
    "between": lambda found, expected: expected[0] <= _number(found) <= expected[1],
    "close_to": _close_to,
    "noise": _noise,
}

# The value of an expectation, as a message gives it.
DESCRIPTIONS: dict[str, Callable[[Any], str]] = {
    "equals": lambda e: show(e),
    "one_of": lambda e: f"one of: {', '.join(map(show, e))}",
    "at_most": lambda e: f"at most {show(e)}",
    "at_least": lambda e: f"at least {show(e)}",
    "between": lambda e: f"between {show(e[0])} and {show(e[1])}",
    "close_to": lambda e: f"{show(e['value'])} ± {_tolerance(e)}",
    "noise": lambda e: "equal, bitwise" if e == "equal" else f"at most {e}",
}


def expectation_error(expected: Any) -> str | None:
    """Return the error message for the `expect` of a suite file, or None if it is valid."""
    kinds = [*COMPARATORS, "near_predicted"]
    if not isinstance(expected, Mapping):
        return f"expect: expected a table, as {{ at_most = 1e-12 }}, found {expected!r}"
    if len(expected) != 1:
        return f"expected exactly one of {', '.join(kinds)}; found {', '.join(expected) or 'none'}"
    ((kind, value),) = expected.items()
    if kind not in kinds:
        return f"unknown expectation '{kind}'; {did_you_mean(kind, kinds)}"
    per_dtype = _is_per_dtype(kind, value)
    if per_dtype and (not value or not set(value) <= set(DTYPES)):
        return f"{kind}: expected a value for each of the dtypes {', '.join(DTYPES)}, found {dict(value)!r}"
    values = value.values() if per_dtype else [value]
    for one in values:
        if (reason := _value_error(kind, one)) is not None:
            return f"{kind}: {reason}, found {one!r}"
    return None


def judge(reading: Reading, expected: Mapping[str, Any], *, dtype: str | None = None) -> Judgement:
    """Compare a reading with an expectation. NaN never passes, and neither does a reading without places.

    `dtype` selects the value of an expectation that has one for each dtype.
    """
    ((kind, value),) = expected.items()
    if _is_per_dtype(kind, value):
        if dtype not in value:
            return Judgement(False, f"dtype {dtype}", f"one of the dtypes that the suite states: {', '.join(value)}")
        value = value[dtype]
    if kind == "near_predicted":
        return _judge_predicted(reading, value)
    wanted = describe({kind: value})
    if not isinstance(reading.value, Mapping):
        return Judgement(COMPARATORS[kind](reading.value, value), show(reading.value, reading.unit), wanted)
    if not reading.value:
        return Judgement(False, "nothing was compared", wanted)
    failed = [place for place, found in reading.value.items() if not COMPARATORS[kind](found, value)]
    shown = failed or list(reading.value)
    found = ", ".join(f"{place}: {_with_numbers(reading, place)}" for place in shown[:SHOWN])
    if len(shown) > SHOWN:
        found += f", and {len(shown) - SHOWN} more"
    return Judgement(not failed, found, wanted, failed)


def _judge_predicted(reading: Reading, tolerance: Mapping[str, float]) -> Judgement:
    """Compare each place with its own prediction, `details["predicted"]`, which the measure computes."""
    predicted = reading.details.get("predicted", {})
    wanted = describe({"near_predicted": tolerance})
    if not isinstance(reading.value, Mapping) or not reading.value or set(predicted) != set(reading.value):
        return Judgement(False, "no prediction for these places", wanted)
    failed = [p for p, found in reading.value.items() if not _close_to(found, {"value": predicted[p], **tolerance})]
    shown = failed or [list(reading.value)[-1]]
    found = ", ".join(
        f"{p}: {show(reading.value[p], reading.unit)} (predicted {show(predicted[p])})" for p in shown[:SHOWN]
    )
    return Judgement(
        not failed, found + (f", and {len(shown) - SHOWN} more" if len(shown) > SHOWN else ""), wanted, failed
    )


def describe(expected: Mapping[str, Any]) -> str:
    """Return an expectation in words: `at most 0.5`, `10.98 ± 0.1`."""
    ((kind, value),) = expected.items()
    if kind == "near_predicted":
        return f"the prediction ± {_tolerance(value)}"
    return DESCRIPTIONS[kind](value)


def show(value: Any, unit: str = "") -> str:
    """Format a value: commas between thousands, four significant digits."""
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, int):
        text = f"{value:,}"
    elif isinstance(value, float):
        text = f"{value:.4g}"
    else:
        text = str(value)
    return f"{text} {unit}".rstrip()


def _tolerance(tolerance: Mapping[str, float]) -> str:
    return show(tolerance["abs"]) if "abs" in tolerance else f"{100 * tolerance['rel']:g}%"


def _with_numbers(reading: Reading, place: str) -> str:
    """Return the value at one place as text, with the differences that a noise verdict is based on."""
    assert isinstance(reading.value, Mapping)
    for row in reading.details.get("comparisons", ()):
        if row["where"] == place:
            return (
                f"{row['verdict']} (float32 {row['float32']:.1e} with floor {row['floor32']:.1e}, "
                f"float64 {row['float64']:.1e} with floor {row['floor64']:.1e})"
            )
    return show(reading.value[place], reading.unit)


def _is_per_dtype(kind: str, value: Any) -> bool:
    return isinstance(value, Mapping) and kind not in ("close_to", "near_predicted")


def _value_error(kind: str, value: Any) -> str | None:
    """Return the error message for the value of an expectation, or None if it is valid."""
    if kind in ("at_most", "at_least") and not _is_number(value):
        return "expected a finite number"
    if kind == "between" and not (
        isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)) and value[0] <= value[1]
    ):
        return "expected [low, high]"
    if kind == "close_to" and not (
        isinstance(value, Mapping)
        and _is_number(value.get("value"))
        and _is_tolerance({**value, "value": None}, keys=2)
    ):
        return "expected { value = NUMBER, rel = FRACTION } or { value = NUMBER, abs = NUMBER }"
    if kind == "near_predicted" and not _is_tolerance(value, keys=1):
        return "expected { rel = FRACTION } or { abs = NUMBER }"
    if kind == "noise" and value not in NOISE_WORDS[:2]:
        return "expected 'equal' or 'rounding'"
    if kind == "equals" and not isinstance(value, bool | int | float | str):
        return "expected a number, a string, true or false"
    if kind == "one_of" and not (
        isinstance(value, list) and value and all(isinstance(each, bool | int | float | str) for each in value)
    ):
        return "expected a list of numbers, strings, true or false"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_tolerance(value: Any, *, keys: int) -> bool:
    """Return True for a table of so many keys with `rel` or `abs`, which is not negative."""
    return (
        isinstance(value, Mapping)
        and len(value) == keys
        and any(_is_number(value.get(key)) and value[key] >= 0 for key in ("rel", "abs"))
    )
