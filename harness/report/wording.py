"""How values are put into words: numbers, times, ratios, bytes, parameters, dates."""

from __future__ import annotations

import math
import re
import unicodedata
from datetime import datetime
from typing import Any

LONGEST = 400  # characters of a message on the page; the whole of it is in tables/checks.csv
LEVEL = 0.05  # an adjusted p above this leaves a difference unresolved
UNSETTLED = "†"  # behind a ratio that the run's own interval resolves and the adjustment over all ratios does not

_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


def plain(value: object, longest: int = LONGEST) -> str:
    """Any text on one line, with no control characters, cut at `longest` characters."""
    text = _ANSI.sub("", str(value))
    kept = "".join(" " if unicodedata.category(c) in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} else c for c in text)
    line = " ".join(kept.split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def number(value: Any) -> str:
    """A value at four significant digits: `124,439,808`, `0.2836`, `2.1e-6`, `yes`."""
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
    """A float at so many significant digits, without the exponent's zeros."""
    if not math.isfinite(value):
        return str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e6:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
        return f"{mantissa}e{int(exponent)}"
    return f"{value:,.{digits}g}" if abs(value) < 10 ** (digits - 1) else f"{value:,.1f}".removesuffix(".0")


def entries(items: list[str], most: int = 4) -> str:
    """The first of many, and how many there are."""
    shown = ", ".join(items[:most])
    return shown if len(items) <= most else f"{shown}, … ({len(items)} in all)"


def expectation(expected: Any) -> str:
    """An expectation as a phrase: `equals 124,439,808`, `between 0.26 and 0.32`."""
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
    """Parameters of a check: `size=124M tied=true`."""
    return " ".join(f"{plain(key)}={number(value)}" for key, value in (values or {}).items())


def date(stamp: object) -> str:
    """`2026-11-22 15:30 UTC` for an ISO stamp; `no date` where there is none."""
    try:
        return datetime.fromisoformat(str(stamp)).strftime("%Y-%m-%d %H:%M UTC")
    except ValueError:
        return "no date"


def duration(seconds: Any) -> str:
    """How long something took: `0.31 s`, `1 min 32 s`."""
    if not isinstance(seconds, (int, float)) or not math.isfinite(seconds):
        return "?"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 9.995 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def at(point: Any, axis: Any) -> str:
    """A point of a comparison: `4,096 tokens`, `T = 4,096`."""
    name = plain(axis or "", longest=40)
    return f"{name} = {number(point)}" if 0 < len(name) <= 2 else f"{number(point)} {name}".strip()


def timing(median: Any, spread: Any = None) -> str:
    """A measured time with its spread, to two digits of the spread: `1.427 ± 0.026 s`."""
    if not isinstance(median, (int, float)) or not math.isfinite(median):
        return ""
    scale, unit = next((s for s in ((1, "s"), (1e-3, "ms")) if abs(median) >= s[0]), (1e-6, "µs"))
    value = median / scale
    if not isinstance(spread, (int, float)) or not math.isfinite(spread):
        return f"{value:.3g} {unit}"
    width = spread / scale
    decimals = min(3, max(0, 1 - math.floor(math.log10(width)))) if width > 0 else 3
    return f"{value:,.{decimals}f} ± {width:.{decimals}f} {unit}"


def memory(size: Any) -> str:
    """Bytes in binary units: `384 MiB`, `3.61 MiB`."""
    if not isinstance(size, (int, float)) or not math.isfinite(size):
        return ""
    scaled, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(scaled) < 1024 or unit == "TiB":
            break
        scaled /= 1024
    return f"{scaled:.3g} {unit}" if scaled < 1000 else f"{scaled:.0f} {unit}"


def factor(value: float) -> str:
    """A ratio at the digits that matter: `1.31x`, `54.6x`, `505x`."""
    return f"{value:.2f}x" if value < 9.995 else f"{value:.1f}x" if value < 99.95 else f"{value:,.0f}x"


def ratio(found: dict[str, Any]) -> str:
    """A ratio of times with its interval: `1.31x slower [1.28, 1.34]`, `not resolved`; `†` where only unadjusted."""
    verdict = str(found.get("verdict") or "").upper()
    value, low, high = (as_float(found.get(key)) for key in ("ratio", "low", "high"))
    if verdict == "SAME" and low and high:
        return f"same within {max(high, 1 / low) - 1:.1%} [{low:.3f}, {high:.3f}]"
    if verdict not in {"FASTER", "SLOWER"} or not value:
        return "not resolved" + bounds(low, high)
    if verdict == "FASTER":
        value, low, high = 1 / value, 1 / high if high else None, 1 / low if low else None
    return f"{factor(value)} {verdict.lower()}{bounds(low, high)}{f' {UNSETTLED}' if unsettled(found) else ''}"


def unsettled(found: dict[str, Any]) -> bool:
    """Whether a difference is one that the adjustment over all ratios of the run (Holm's) does not leave standing."""
    adjusted = as_float(found.get("adjusted"))
    return resolved(found) and adjusted is not None and adjusted > LEVEL


def resolved(found: dict[str, Any]) -> bool:
    """Whether a ratio's own interval tells the two apart."""
    return str(found.get("verdict") or "").upper() in {"FASTER", "SLOWER"}


def claim(found: dict[str, Any]) -> str:
    """A ratio as a title may say it, without its interval: `1.31x slower`; what is unsettled is not resolved."""
    return "not resolved" if unsettled(found) else ratio(found).split(" [")[0]


def bounds(low: float | None, high: float | None) -> str:
    """The interval behind a ratio, with a space before it: ` [1.28, 1.34]`."""
    if low is None or high is None:
        return ""
    return f" [{factor(low)[:-1]}, {factor(high)[:-1]}]"


def prefixed(value: float, unit: str) -> str:
    """A rate in decimal units: `143 GFLOP/s`, `11.9 GB/s`."""
    power = min(5, max(0, math.floor(math.log10(value) / 3))) if value > 0 else 0
    scaled = value / 1000**power
    return f"{scaled:.3g} {('', 'k', 'M', 'G', 'T', 'P')[power]}{unit}" if scaled < 999.5 else f"{scaled:,.0f} {unit}"


def share(fraction: Any, low: Any = None, high: Any = None) -> str:
    """A share with its interval, in percent: `81% [79, 83]`."""
    middle, *ends = (as_float(value) for value in (fraction, low, high))
    if middle is None:
        return ""
    digits = 0 if middle >= 0.0995 or not middle else 1 if middle >= 0.00995 else 2
    whole = f"{middle:.{digits}%}"
    return whole + (
        f" [{', '.join(f'{100 * end:.{digits}f}' for end in ends if end is not None)}]"
        if all(end is not None for end in ends)
        else ""
    )


def quantity(name: str, value: Any) -> str:
    """A plain number in the unit that its name ends in: `12 s` for compile_seconds, `3.61 MiB` for cache_bytes."""
    found = as_float(value)
    if found is None:
        return number(value) if value is not None else ""
    if name.endswith("_per_second"):
        return f"{speed(found)}/s"
    if name.endswith("_seconds"):
        return timing(found) if found else "0 s"
    if name.endswith("_bytes"):
        return memory(found)
    if name.endswith("_flops"):
        return prefixed(found, "FLOP")
    if name.endswith(("_share", "_fraction", "mfu")):
        return share(found)
    return number(int(found) if found.is_integer() and abs(found) < 1e15 else found)


def unitless(name: object) -> str:
    """The name of such a number without its unit: `compile` for compile_seconds, `graph breaks` for graph_breaks."""
    return re.sub(r"_(per_second|seconds|bytes|flops|share|fraction)$", "", plain(name, longest=60)).replace("_", " ")


def speed(value: float) -> str:
    """Things a second at three digits: `8.84`, `220,386`."""
    return f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def as_float(value: Any) -> float | None:
    """A finite number as float; None for all else, booleans included."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)
