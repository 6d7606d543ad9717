"""The settings that a program has when it makes its first step: the names and values in its own frames."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import types
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from harness.core.error_text import is_user_file
from harness.training.setting_words import word_of

LONGEST = 100  # characters of a text that may be a setting
DEPTH = 2  # of configurations inside configurations
Values = dict[tuple[str, str], set[Any]]  # word and name -> the values that were seen


def observed() -> Values:
    """Return the settings in the frames of the user's files, from the innermost outwards, and in the main module."""
    found: Values = {}
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_user_file(frame.f_code.co_filename):
            _add(found, frame.f_locals, DEPTH)
        frame = frame.f_back
    _add(found, vars(sys.modules["__main__"]), DEPTH)
    return found


def constant(first: Values, last: Values) -> dict[str, Any]:
    """Return the settings, by word, that had one value each, at the first step as at the last."""
    by_word: dict[str, set[Any]] = {}
    for key, values in first.items():
        if last.get(key) == values:
            by_word.setdefault(key[0], set()).update(values)
    return {word: next(iter(values)) for word, values in by_word.items() if len(values) == 1}


def _add(found: Values, names: Mapping[str, Any], depth: int) -> None:
    for name, value in list(names.items()):
        if not isinstance(name, str) or name.startswith("__"):
            continue
        word = word_of(name)
        if isinstance(value, bool | int | float | str):
            if word is not None and len(str(value)) <= LONGEST:
                found.setdefault((word, name), set()).add(value)
        elif depth:
            _add(found, dict(_entries(value)), depth - 1)


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a configuration has: a dict, a dataclass, a namespace, or an object of a class so named."""
    kind = type(value)
    is_configuration = (
        issubclass(kind, argparse.Namespace | types.SimpleNamespace)
        or dataclasses.is_dataclass(kind)
        or any(part in kind.__name__.lower() for part in ("config", "cfg", "args", "settings", "hparams", "options"))
    )
    if issubclass(kind, dict) and "params" in value:
        return  # a group of an optimizer: what is used, not what was declared
    if issubclass(kind, dict):
        yield from ((key, each) for key, each in list(value.items())[:200] if isinstance(key, str))
    elif is_configuration and isinstance(getattr(value, "__dict__", None), dict):
        yield from vars(value).items()
