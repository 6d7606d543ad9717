"""The settings of a training program: flags of its parser, names that it reads as `--name=value`, and literals."""

from __future__ import annotations

import ast
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

from harness.training.literals import Literal, Place
from harness.training.setting_words import RESUME_VALUES, VALUES, word_of

PARTS = ("text_length", "validation_length")


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


Replacements = Mapping[str, Mapping[Place, Any]]
"""The values of the literals that are replaced, by file and place."""


@dataclass(frozen=True)
class Assignment:
    """How a program's settings are set in one run: arguments, replaced literals, and what they set, by word."""

    arguments: tuple[str, ...]
    replaced: Replacements
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Settings:
    """What can be set, by word. A flag is preferred to a name, and both to literals; what the user gave stays.

    `names` are top-level names of a script that reads its arguments itself, as `--name=value`. `more_flags` are further
    flags of a word: a program may have its total of steps, and a step to stop at.
    """

    flags: Mapping[str, Flag] = field(default_factory=dict)
    more_flags: Mapping[str, tuple[Flag, ...]] = field(default_factory=dict)
    names: Mapping[str, str] = field(default_factory=dict)
    literals: Mapping[str, tuple[Literal, ...]] = field(default_factory=dict)
    given: Mapping[str, Any] = field(default_factory=dict)

    def __contains__(self, word: str) -> bool:
        return word not in self.given and (word in self.flags or word in self.names or word in self.literals)

    def default(self, word: str) -> Any:
        """Return the value that a setting has in the source; None if it is not known."""
        literals = self.literals.get(word, ())
        return literals[0].default if literals else None

    @property
    def own(self) -> dict[str, Any]:
        """Return the program's own values, by word: of literals, which may be flags' defaults, and else of flags."""
        literals = {word: each[0].default for word, each in self.literals.items()}
        return {**{word: flag.default for word, flag in self.flags.items()}, **literals, **self.given}

    def leaving(self, words: Collection[str]) -> Settings:
        """Return the settings of which these stay as the program has them, as if the user had given them."""
        own = {word: value for word, value in self.own.items() if word in words}
        return replace(self, given={**own, **self.given})

    def renamed(self, name: Callable[[str], str | None]) -> Settings:
        """Return the settings under other words; those of which there is none are left out."""
        known: list[Mapping[str, Any]] = [getattr(self, each.name) for each in fields(self)]
        return Settings(*({new: value for word, value in each.items() if (new := name(word))} for each in known))

    def called(self, word: str) -> set[str]:
        """Return what the program's source calls a setting."""
        flags = {self.flags[word].name.lstrip("-").replace("-", "_")} if word in self.flags else set()
        names = {self.names[word]} if word in self.names else set()
        return flags | names | {literal.name for literal in self.literals.get(word, ())}

    def assign(self, values: Mapping[str, Any]) -> Assignment:
        """Return how these values are set; those that it has no setting for are left out."""
        arguments: list[str] = []
        replaced: dict[str, dict[Place, Any]] = {}
        assigned: dict[str, Any] = dict(self.given)
        for word, value in values.items():
            if word not in self or (word in PARTS and isinstance(self.own.get(word), float)):  # a share, and no number
                continue
            if (flag := self.flags.get(word)) is not None:
                chosen = _choice(word, value, flag.choices)
                if chosen is None:
                    continue
                for each in (flag, *self.more_flags.get(word, ())):
                    arguments += each.arguments(chosen)
            elif (name := self.names.get(word)) is not None:
                arguments.append(f"--{name}={_as_the_default(_named(word, name, value), self.default(word))}")
            else:
                literals = self.literals[word]
                for literal in literals:
                    own = _as_the_default(_named(word, literal.name, value), literal.default)
                    replaced.setdefault(literal.file, {})[literal.place] = own
                if word == "batch_size" and all(literal.kind == "argument" for literal in literals):
                    continue  # of a loader, which may be that of the validation alone
            assigned[word] = value
        return Assignment(tuple(arguments), replaced, assigned)


def read_settings(
    options: Sequence[Mapping[str, Any]],
    literals: Mapping[str, tuple[Literal, ...]],
    arguments: Sequence[str],
    names: Sequence[str] = (),
    chosen: Mapping[str, Any] | None = None,
) -> Settings:
    """Return the settings of a program, from its options, its literals and the arguments that the user gave it.

    `names`: the top-level names of a script that reads `--name=value` itself. `chosen`: what the user set in the
    source, by word.
    """
    flags: dict[str, list[Flag]] = {}
    for row in options:
        if row["help"] or not row["flags"]:
            continue
        names = [flag for flag in row["flags"] if flag.startswith("--")] or list(row["flags"])
        word = next((found for name in names if (found := word_of(name, option=True)) is not None), None)
        if word is not None and (word not in flags or word == "steps"):
            choices = tuple(row["choices"]) if row["choices"] is not None else None
            flags.setdefault(word, []).append(
                Flag(word, tuple(names), row["takes_value"], row["negated"], row["metavar"], choices, row["default"])
            )
    own: dict[str, str] = {}
    for name in names:
        if (word := word_of(name)) is not None:
            own.setdefault(word, name)
    usable = {word: kept for word, each in literals.items() if (kept := _replaceable(word, each))}
    first = {word: each[0] for word, each in flags.items()}
    more = {word: tuple(each[1:]) for word, each in flags.items() if len(each) > 1}
    settings = Settings(first, more, own, usable, {**_given(arguments), **(chosen or {})})
    settings = _with_cooldown(settings) if _decays_at_the_end(settings) else settings
    settings = settings.renamed(functools.partial(_unless_a_share, settings))
    return settings if "validation_length" in settings else _without_a_budget(settings)


def _unless_a_share(settings: Settings, word: str) -> str | None:
    """Return the word of a setting: a warm-up of less than a step, and a minimum above the peak, are shares."""
    own = settings.own
    if word == "warmup" and isinstance(own.get(word), float) and 0 < own[word] < 1:
        return "warmup_share" if "warmup_share" not in settings else None
    peak, least = own.get("lr"), own.get("min_lr")
    is_share = word == "min_lr" and isinstance(peak, float) and isinstance(least, float) and least > peak
    return None if is_share else word


def _without_a_budget(settings: Settings) -> Settings:
    """Return the settings without the tokens of training, which are no part of a text, but a number of steps."""
    budget = any("tokens" in name for name in settings.called("text_length"))
    return settings.renamed(lambda word: None if word == "text_length" else word) if budget else settings


def _decays_at_the_end(settings: Settings) -> bool:
    """Return True if "decay_steps" is the length of a final decay: it is less than half of all steps."""
    flags = (settings.flags.get("steps"), *settings.more_flags.get("steps", ()))
    steps = [flag.default for flag in flags if flag is not None and isinstance(flag.default, int)]
    steps += [settings.default("steps")] if isinstance(settings.default("steps"), int) else []
    horizon = settings.own.get("horizon")
    called = settings.called("horizon")
    return (
        isinstance(horizon, int)
        and "cooldown" not in settings
        and bool(called)
        and all("decay" in name for name in called)
        and 0 < 2 * horizon < max(steps, default=0)
    )


def _with_cooldown(settings: Settings) -> Settings:
    """Return the settings of which the end of the schedule is the length of its final decay instead."""
    return settings.renamed(lambda word: "cooldown" if word == "horizon" else word)


def _replaceable(word: str, literals: Sequence[Literal]) -> tuple[Literal, ...]:
    """Return the literals that can be given a value; to resume is a truth value, a path or one of RESUME_VALUES."""
    if word != "resume":
        return tuple(literals)
    return tuple(each for each in literals if isinstance(each.default, bool | str) or each.name in RESUME_VALUES)


def _named(word: str, name: str, value: Any) -> Any:
    """Return a value as the program calls it."""
    if word == "resume":
        return RESUME_VALUES.get(name, value)
    return VALUES.get(word, {}).get(value, (value,))[0] if isinstance(value, str) else value


def _as_the_default(value: Any, default: Any) -> Any:
    """Return a number in the type that it has in the source: programs compare types."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    whole = isinstance(default, int) and not isinstance(default, bool) and isinstance(value, bool)
    return int(value) if whole else value


def _given(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the settings that the user's own arguments give, as `--name=value` or `--name value`."""
    found: dict[str, Any] = {}
    for place, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        word = word_of(name, option=True) if argument.startswith("-") else None
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
