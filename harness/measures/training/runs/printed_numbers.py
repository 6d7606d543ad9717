"""The numbers in what a program prints, and how far a number is from one of them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from harness.training.events import Printed
from harness.training.recording import Recording

NUMBER = re.compile(r"(?<![\w.])(?:-?\d+\.(\d+)(?:e([+-]?\d+))?|-?inf|nan)(?![\w.]*\w)", re.IGNORECASE)

# The relative error of a mean that a program computes in float32: some units of 2^-24 (a number with all its digits).
ROUNDING = 8 * 2.0**-24


@dataclass(frozen=True)
class PrintedNumber:
    """A number in a printed line: its text and value, half a unit of its last digit, and how far another one is.

    `line` is the user's line that printed it, `before` the printed text, in small letters, since the number before it.
    """

    text: str
    value: float
    half: float
    half_digits: float
    line: str = ""
    before: str = ""


def nearest_print(
    recording: Recording, value: float, *, after: int, words: tuple[str, ...] = ()
) -> PrintedNumber | None:
    """Return the printed number that is nearest to a value, or None if none was printed in its time.

    Its time is from the event `after` to the second optimizer step after it: a program may print what a step was when
    the next one is done. With `words`, only lines with one of them are taken, if there are any; where no number is the
    value, those that follow one of them are taken before others.
    """
    until = [each.order for each in recording.steps if each.order > after]
    end = until[1] if len(until) > 1 else float("inf")
    lines = [line for line in recording.printed if after < line.order < end]
    named = [line for line in lines if any(word in line.text.lower() for word in words)]
    numbers = [number for line in named or lines for number in _numbers(line, value)]
    nearest = min(numbers, key=lambda number: _distance(number.value, value), default=None)
    if nearest is None or nearest.half_digits <= 1 or not words:
        return nearest
    after_words = [number for number in numbers if any(word in number.before for word in words)]
    return min(after_words or numbers, key=lambda number: _distance(number.value, value))


def _distance(number: float, value: float) -> float:
    """Return the distance of two numbers: 0 if both are NaN, infinity if one of them is."""
    if math.isnan(number) or math.isnan(value):
        return 0.0 if math.isnan(number) and math.isnan(value) else math.inf
    return 0.0 if number == value else abs(number - value)


def _numbers(line: Printed, value: float) -> Iterator[PrintedNumber]:
    end = 0
    for match in NUMBER.finditer(line.text):
        before, end = line.text[end : match.start()].lower(), match.end()
        half = 0.5 * 10.0 ** (int(match.group(2) or 0) - len(match.group(1) or ""))
        number = float(match.group(0))
        beyond_rounding = max(0.0, _distance(number, value) - (ROUNDING * abs(value) if math.isfinite(value) else 0.0))
        yield PrintedNumber(match.group(0), number, half, beyond_rounding / half, line.line, before)
