"""The choices that a subject offers for attention and initialisation."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Mapping
from types import ModuleType
from typing import Any, Literal

from harness.subjects.adapters.construction.setting_names import quantity_of

# The harness's name of each attention implementation, and the names that subjects have for it.
ATTENTIONS = {
    "looped": ("looped", "loop", "per_head"),
    "naive": ("naive", "eager", "manual", "math", "vanilla", "standard"),
    "flash": ("flash", "sdpa", "fused", "flash_attention"),
}


def stated_choices(
    parameters: Mapping[str, inspect.Parameter], owners: Any, modules: list[ModuleType]
) -> dict[str, tuple[str, ...]]:
    """Return the values that the subject states for 'attention' and 'init'.

    They are stated as Literal[...] in the annotation, as `attentions` or `recipes` of the class, or as a collection of
    strings in the module that contains the default and has ATT or INIT in its name.
    """
    found: dict[str, tuple[str, ...]] = {}
    owners = owners if isinstance(owners, list) else [owners]
    homes = [sys.modules[o.__module__] for o in owners if getattr(o, "__module__", None) in sys.modules]
    for name, parameter in parameters.items():
        quantity = quantity_of(name, parameters)
        if quantity not in ("attention", "init"):
            continue
        annotation = parameter.annotation
        if isinstance(annotation, str) and annotation.startswith(("Literal", "typing.Literal")):
            annotation = Literal[tuple(re.findall(r"['\"]([^'\"]+)['\"]", annotation))]
        stated: Any = typing.get_args(annotation) if typing.get_origin(annotation) is Literal else ()
        attribute = {"attention": "attentions", "init": "recipes"}[quantity]
        stated = stated or next((getattr(o, attribute) for o in owners if hasattr(o, attribute)), ())
        if not stated or callable(stated):
            stem = {"attention": "ATT", "init": "INIT"}[quantity]
            stated = next(
                (
                    value
                    for m in [*homes, *modules]
                    for word, value in vars(m).items()
                    if stem in word.upper()
                    and isinstance(value, tuple | list | set | frozenset | Mapping)
                    and all(isinstance(item, str) for item in value)
                    and parameter.default in value
                ),
                (),
            )
        if stated and all(isinstance(word, str) for word in stated):
            found[quantity] = tuple(stated)
    return found
