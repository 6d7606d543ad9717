"""Values as text: numbers, times, ratios, bytes, parameters, dates."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime
from typing import Any

from harness.report.json_values import as_float

LONGEST = 400  # characters of a message on the page; the complete message is in tables/checks.csv
LEVEL = 0.05  # a difference with an adjusted p above this is inconclusive
DAGGER = "†"  # marks a ratio that is conclusive by its own interval but not after the adjustment over all ratios
# A point of an axis as one says it, with what stands before it in a sentence.
POINTS = {
    "tokens": ("at ", "{} token{s}"),
    "context": ("with a ", "context of {} token{s}"),
    "batch": ("with a ", "batch of {}"),
    "prompt": ("with a ", "prompt of {} token{s}"),
    "new tokens": ("for ", "{} new token{s}"),
    "rate": ("at ", "{} request{s} a minute"),
    "slots": ("with ", "{} slot{s}"),
    "lookahead": ("with ", "{} draft{s} a round"),
    "experts": ("with ", "{} expert{s}"),
}
AXIS_TITLES = {
    "context": "context, in tokens",
    "prompt": "prompt, in tokens",
    "rate": "requests a minute",
    "lookahead": "drafts a round",
}

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def plain(value: object, longest: int = LONGEST) -> str:
    """Return any text on one line, without control characters, cut at `longest` characters."""
    text = _ANSI.sub("", str(value))
    visible = "".join(" " if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c for c in text)
    line = " ".join(visible.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def short_name(name: object) -> str:
    """Return the name of an arm or recipe, cut to the room beside a line of a plot."""
    return plain(name, longest=24)


def slug(name: object, longest: int = 60) -> str:
    """Return a name as a file name or an anchor: lower-case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", plain(name).lower()).strip("-")[:longest] or "comparison"


def number(value: Any) -> str:
    """Return a value at four significant digits: `124,439,808`, `0.2836`, `2.1e-6`, `true`."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return decimal(value)
    if isinstance(value, dict):
        return entries([f"{plain(key)}: {number(item)}" for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return "[" + entries([number(item) for item in value]) + "]"
    return plain(value)


def decimal(value: float, digits: int = 4) -> str:
    """Return a float at `digits` significant digits, without leading zeros in the exponent."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.1f}".removesuffix(".0")


def two_decimals(value: float) -> str:
    """Return an exponent as text: `1.98`."""
    return f"{value:.2f}"


def entries(items: list[str], most: int = 4) -> str:
    """Return the first `most` items, separated by commas, and the total if there are more."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, … ({len(items)} in all)"


def plural(count: object, noun: str) -> str | None:
    """Return `2 cores` or `1 core`; None if the count is unknown."""
    if not isinstance(count, int):
        return None
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def expectation(expected: Any) -> str:
    """Return an expectation as a phrase: `equals 124,439,808`, `between 0.26 and 0.32`."""
    if not isinstance(expected, dict):
        return number(expected) if expected is not None else ""
    phrases = []
    for key, value in expected.items():
        if key == "between" and isinstance(value, (list, tuple)) and len(value) == 2:
            phrases.append(f"between {number(value[0])} and {number(value[1])}")
        elif key in {"noise", "noise_verdict"}:
            phrases.append("equal, or different by rounding only")
        else:
            phrases.append(f"{plain(key).replace('_', ' ')} {number(value)}")
    return ", ".join(phrases)


def parameters(values: Any) -> str:
    """Return the parameters of a check: `size=124M tied=true`."""
    return " ".join(f"{plain(key)}={number(value)}" for key, value in (values or {}).items())


def date(stamp: object) -> str:
    """Return an ISO time as `2026-11-22 15:30 UTC`; `no date` if it is not one."""
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return "no date"


def duration(seconds: Any) -> str:
    """Return a number of seconds as `0.31 s`, `1 min 32 s` or `2 h 1 min`."""
    if (seconds := as_float(seconds)) is None:
        return "?"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def at(point: Any, axis: Any) -> str:
    """Return a point of a comparison: `4,096 tokens`, `batch of 32`, `T = 4,096`."""
    name = plain(axis or "", longest=40)
    if name in POINTS:
        return POINTS[name][1].format(number(point), s="" if point == 1 else "s")
    return f"{name} = {number(point)}" if 0 < len(name) <= 2 else f"{number(point)} {name}".strip()


def where(point: Any, axis: Any) -> str:
    """Return a point of a comparison for a sentence: `at 4,096 tokens`, `with a batch of 32`."""
    before, _ = POINTS.get(plain(axis or "", longest=40), ("at ", ""))
    return before + at(point, axis)


def axis_title(axis: Any) -> str:
    """Return what an axis is called beside a plot or above a column."""
    name = plain(axis or "", longest=40)
    return AXIS_TITLES.get(name, name)


def timing(median: Any, spread: Any = None) -> str:
    """Return a time in seconds with its spread, to two digits of the spread: `1.427 ± 0.026 s`."""
    if (median := as_float(median)) is None:
        return ""
    scale, unit = next((s for s in ((1, "s"), (1e-3, "ms")) if abs(median) >= s[0]), (1e-6, "µs"))
    value = median / scale
    if (spread := as_float(spread)) is None:
        return f"{value:.3g} {unit}"
    width = spread / scale
    decimals = min(3, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    return f"{value:,.{decimals}f} ± {width:.{decimals}f} {unit}"


def memory(size: Any) -> str:
    """Return a number of bytes in binary units: `384 MiB`, `3.61 MiB`."""
    if (scaled := as_float(size)) is None:
        return ""
    unit = "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(scaled) < 1024 or unit == "TiB":
            break
        scaled /= 1024
    return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:.0f} {unit}"


def factor(value: float) -> str:
    """Return a ratio at the digits that matter: `1.31x`, `54.6x`, `505x`."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x" if value < 99.95 else f"{value:,.0f}x"


def ratio(found: dict[str, Any]) -> str:
    """Return a ratio of times with its 95% interval.

    `1.31x slower [1.28, 1.34]`; `same within 1.3% [0.990, 1.013]`; `1.02x slower [0.95, 1.09] (inconclusive)` if the
    interval decides nothing; `1.02x faster [1.00, 1.03] (inconclusive †)` if it decides, but not after the adjustment.
    """
    verdict = str(found.get("verdict") or "").upper()
    low, high = (as_float(found.get(key)) for key in ("low", "high"))
    if verdict == "SAME" and low and high:
        return f"same within {max(high, 1 / low) - 1:.1%} [{low:.3f}, {high:.3f}]"
    if not as_float(found.get("ratio")):
        return "inconclusive" + interval(low, high)
    if not is_conclusive(found):
        return f"{faster_or_slower(found)} (inconclusive)"
    return f"{faster_or_slower(found)}{f' (inconclusive {DAGGER})' if fails_adjustment(found) else ''}"


def faster_or_slower(found: dict[str, Any]) -> str:
    """Return `1.31x slower [1.28, 1.34]`, the direction as measured; `1.00x [0.98, 1.02]` if there is none to see."""
    value, low, high = (as_float(found.get(key)) or None for key in ("ratio", "low", "high"))
    if not value:
        return ""
    if factor(max(value, 1 / value)) == factor(1.0):
        return f"{factor(value)}{interval(low, high)}"
    if value > 1:
        return f"{factor(value)} slower{interval(low, high)}"
    return f"{factor(1 / value)} faster{interval(1 / high if high else None, 1 / low if low else None)}"


def is_conclusive(found: dict[str, Any]) -> bool:
    """Return True if the interval of a ratio alone says which of the two is faster."""
    return str(found.get("verdict") or "").upper() in {"FASTER", "SLOWER"}


def fails_adjustment(found: dict[str, Any]) -> bool:
    """Return True for a difference that is no longer significant after Holm's adjustment over all ratios of the run."""
    adjusted = as_float(found.get("adjusted"))
    return is_conclusive(found) and adjusted is not None and adjusted > LEVEL


def interval(low: float | None, high: float | None) -> str:
    """Return the interval of a ratio with a space before it: ` [1.28, 1.34]`."""
    if low is None or high is None:
        return ""
    return f" [{factor(low)[:-1]}, {factor(high)[:-1]}]"


def si_prefixed(value: float, unit: str) -> str:
    """Return a rate in decimal units: `143 GFLOP/s`, `11.9 GB/s`."""
    power = min(5, max(0, math.floor(math.log10(value) / 3))) if value > 0 else 0
    scaled = value / 1000**power
    return f"{scaled:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}" if scaled < 999.5 else f"{scaled:,.0f} {unit}"


def percent(fraction: Any, low: Any = None, high: Any = None) -> str:
    """Return a fraction with its interval, in percent: `81% [79, 83]`."""
    middle, *ends = (as_float(value) for value in (fraction, low, high))
    if middle is None:
        return ""
    digits = 0 if middle >= 0.0995 or not middle else 1 if middle >= 0.00995 else 2
    text = f"{middle:.{digits}%}"
    return text + (
        f" [{', '.join(f'{100 * end:.{digits}f}' for end in ends if end is not None)}]"
        if all(end is not None for end in ends)
        else ""
    )


def quantity(name: str, value: Any) -> str:
    """Return a number in the unit that its name ends in: `12 s` for compile_seconds, `3.61 MiB` for cache_bytes."""
    found = as_float(value)
    if found is None:
        return number(value) if value is not None else ""
    if name.endswith("_per_second"):
        return f"{per_second(found)}/s"
    if name.endswith("_seconds"):
        return timing(found) if found else "0 s"
    if name.endswith("_bytes"):
        return memory(found)
    if name.endswith("_flops"):
        return si_prefixed(found, "FLOP")
    if name.endswith(("_share", "_fraction", "mfu")):
        return percent(found)
    return number(int(found) if found.is_integer() and abs(found) < 1e15 else found)


def without_unit(name: object) -> str:
    """Return the name of such a number without its unit: `compile` for compile_seconds."""
    return re.sub(r"_(per_second|seconds|bytes|flops|share|fraction)$", "", plain(name, longest=60)).replace("_", " ")


def per_second(value: float) -> str:
    """Return a rate at three digits: `8.84`, `220,386`."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"
