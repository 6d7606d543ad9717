"""The settings of a training program: the flags of its parser and the top-level constants of its script."""

from __future__ import annotations

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.training.setting_words import RESUME_VALUES, VALUES, word_of


@dataclass(frozen=True)
class Flag:
    """An option of a program's command line, as its parser describes it."""

    word: str
    flags: tuple[str, ...]
    takes_value: bool
    negated: str | None
    metavar: str | None
    choices: tuple[str, ...] | None
    default: Any

    @property
    def name(self) -> str:
        """Return the flag in full."""
        return max(self.flags, key=len)

    def arguments(self, value: Any) -> list[str]:
        """Return the arguments that set a value."""
        if self.takes_value:
            whole = isinstance(value, bool) and isinstance(self.default, int) and not isinstance(self.default, bool)
            return [f"{self.name}={int(value) if whole else value}"]
        positive = [flag for flag in self.flags if flag != self.negated]
        return positive[:1] if value else [self.negated] if self.negated else []


@dataclass(frozen=True)
class Constant:
    """A top-level constant of a script, which is replaced in memory."""

    word: str
    name: str
    default: Any


@dataclass(frozen=True)
class Assignment:
    """How a program's settings are set in one run: arguments, replaced constants, and what they set, by word."""

    arguments: tuple[str, ...]
    constants: Mapping[str, Any]
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What can be set, by word. A flag is preferred to a constant; what the user gave as an argument cannot be set."""

    flags: Mapping[str, Flag] = field(default_factory=dict)
    constants: Mapping[str, Constant] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, word: str) -> bool:
        return word not in self.given and (word in self.flags or word in self.constants)

    def assign(self, values: Mapping[str, Any]) -> Assignment:
        """Return how these values are set; those that it has no setting for are left out."""
        arguments: list[str] = []
        constants: dict[str, Any] = {}
        assigned: dict[str, Any] = dict(self.given)
        for word, value in values.items():
            if word not in self:
                continue
            if (flag := self.flags.get(word)) is not None:
                chosen = _choice(word, value, flag.choices)
                if chosen is None:
                    continue
                arguments += flag.arguments(chosen)
            else:
                constant = self.constants[word]
                constants[constant.name] = RESUME_VALUES.get(constant.name, value) if word == "resume" else value
            assigned[word] = value
        return Assignment(tuple(arguments), constants, assigned)


def read_settings(
    options: Sequence[Mapping[str, Any]], constants: Mapping[str, Any], arguments: Sequence[str]
) -> Settings:
    """Return the settings of a program, from its options, its constants and the arguments that the user gave it."""
    flags: dict[str, Flag] = {}
    for row in options:
        if row["help"] or not row["flags"]:
            continue
        names = [flag for flag in row["flags"] if flag.startswith("--")] or list(row["flags"])
        word = next((found for name in names if (found := word_of(name)) is not None), None)
        if word is not None and word not in flags:
            choices = tuple(row["choices"]) if row["choices"] is not None else None
            flags[word] = Flag(
                word, tuple(names), row["takes_value"], row["negated"], row["metavar"], choices, row["default"]
            )
    own: dict[str, Constant] = {}
    for name, default in constants.items():
        word = word_of(name)
        if word is not None and word not in own and _can_be_replaced(word, name, default):
            own[word] = Constant(word, name, default)
    return Settings(flags, own, _given(arguments))


def _can_be_replaced(word: str, name: str, default: Any) -> bool:
    """Return True if a constant can be a setting: a number, a truth value or a text, and not a list of them."""
    if word == "resume":
        return isinstance(default, bool | str) or name in RESUME_VALUES
    return isinstance(default, bool | int | float | str)


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the user's own arguments give, as `--name=value` or `--name value`."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        word = word_of(name) if argument.startswith("-") else None
        if word is None:
            continue
        following = arguments[place + 1] if place + 1 < len(arguments) else ""
        if not equals:
            value = following if following and not following.startswith("--") else "True"
        try:
            found[word] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[word] = value
    return found


def _choice(word: str, value: Any, choices: Sequence[str] | None) -> Any:
    """Return the value as the program calls it; None if it is none of its choices."""
    names = VALUES.get(word, {}).get(value, (value,))
    if choices is None:
        return names[0]
    return next((name for name in names if str(name) in choices), None)
