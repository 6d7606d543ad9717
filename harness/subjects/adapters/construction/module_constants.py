"""A constructor whose sizes are, in part or all, constants of the subject's modules."""

from __future__ import annotations

import dataclasses
from collections import Counter
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.construction.constructor import BY_SIZE, Constructor
from harness.subjects.adapters.construction.find_constructor import find_constructor
from harness.subjects.adapters.construction.setting_names import SIZES, quantity_of
from harness.subjects.adapters.importing.project import Project

SETTABLE = (*SIZES, "head_width", "feed_forward_width", "dropout")


def constructor_in(project: Project, name: str) -> Constructor:
    """Return the constructor of `name` in a project: its own settings, and constants for the sizes that those lack."""
    direct = find_constructor(named(project.module, name), project.module)
    if direct.description in (BY_SIZE, "a module instance", "a dict"):
        return direct
    constants = project.constants()
    lacking = [quantity for quantity in SETTABLE if not direct.takes(quantity)]
    meant = {word: quantity for word in constants if (quantity := quantity_of(word, constants)) in lacking}
    # Of a constant and the attribute of a class, the constant: the class is often made from it.
    plain = {quantity for word, quantity in meant.items() if "." not in word}
    counts = Counter((word.split(".")[0], quantity) for word, quantity in meant.items())  # a table of presets has many
    words = frozenset(
        word
        for word, quantity in meant.items()
        if "." not in word or (quantity not in plain and counts[word.split(".")[0], quantity] == 1)
    )
    if not any(quantity_of(word, constants) in SIZES for word in words):
        return direct
    return with_constants(direct, project, name, words)


def with_constants(direct: Constructor, project: Project, name: str, words: frozenset[str]) -> Constructor:
    """Return a constructor that sets these constants, too. Each combination of values has modules of its own."""
    constants = project.constants()

    def call(arguments: dict[str, Any]) -> nn.Module:
        values = {word: value for word, value in arguments.items() if word in words}
        module = project.variant(values)
        variant = find_constructor(named(module, name), module)
        return variant.call({w: v for w, v in arguments.items() if w in variant.words or w not in constants})

    described = direct.description
    if "constants of its module" not in described:
        described = "constants of its module" if not direct.words else f"{described} and constants of its module"
    return dataclasses.replace(
        direct,
        direct=direct,
        words=direct.words | words,
        call=call,
        description=described,
        defaults={**{word: constants[word] for word in words}, **direct.defaults},
    )


def named(module: ModuleType, name: str) -> Any:
    """Return the attribute of a module by its dotted name."""
    target: Any = module
    for word in name.split("."):
        if not hasattr(target, word):
            raise SubjectError(f"{module.__name__} has no '{word}' once its constants are changed")
        target = getattr(target, word)
    return target
