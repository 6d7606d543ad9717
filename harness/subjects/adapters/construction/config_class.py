"""The config class of a subject: find it, list its settings, make an instance."""

from __future__ import annotations

import inspect
import sys
import types
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.subjects.adapters.construction.keys_read import keys_read
from harness.subjects.adapters.construction.prototype import DEPTH, filled
from harness.subjects.adapters.construction.setting_names import SIZES, names_sizes, quantity_of

PYTHONS = ("builtins", "inspect", "typing")  # modules whose classes are no configs


def config_classes(parameter: inspect.Parameter, target: Any, modules: list[ModuleType]) -> list[Callable[..., Any]]:
    """Return the class that the parameter is annotated with; else the classes in `modules` that name sizes."""
    stated = [_annotation(parameter, modules), getattr(target, "config_class", None)]
    beside = [value for m in modules for value in vars(m).values()]
    same_module = [c for c in beside if getattr(c, "__module__", "") == getattr(target, "__module__", None)]
    for candidates in (stated, same_module, beside):
        found = [c for c in candidates if _is_config_class(c)]
        if found:
            # A class that contains a config, as a checkpoint does, is one only where nothing names the sizes itself.
            return list(dict.fromkeys([c for c in found if names_sizes(_own_settings(c))] or found))
    return []


def settings_of(config_class: Any, depth: int = DEPTH) -> dict[str, inspect.Parameter]:
    """Return the settings of a config class, with default and annotation: its parameters, else its attributes.

    Those of a config class inside it have the name of its setting before theirs: `model.n_embd`.
    """
    own = _own_settings(config_class)
    inner = {
        f"{name}.{word}": setting
        for name, parameter in own.items()
        if depth > 1 and (inside := _class_inside(config_class, parameter)) is not None
        for word, setting in settings_of(inside, depth - 1).items()
    }
    return {**own, **inner}


def _own_settings(config_class: Any) -> dict[str, inspect.Parameter]:
    try:
        parameters = inspect.signature(config_class).parameters
    except (TypeError, ValueError):
        parameters = types.MappingProxyType({})
    named = {n: p for n, p in parameters.items() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}
    if any(quantity_of(name, named) in SIZES or _class_inside(config_class, p) for name, p in named.items()):
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):  # minGPT's: keywords become attributes
            for name, default in keys_read(config_class, []).items():  # self.n_experts = kwargs.get("n_experts", 4)
                named.setdefault(name, inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default))
            meant = {quantity_of(name, named) for name in named}
            for name in ("n_layer", "n_head", "n_embd"):
                if quantity_of(name, ()) not in meant:
                    named[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY)
        return named
    return {
        name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=value)
        for c in reversed(getattr(config_class, "__mro__", ())[:-1])
        for name, value in vars(c).items()
        if not name.startswith("_") and not callable(value) and not isinstance(value, property | classmethod)
    }


def make_config(config_class: Any, arguments: Mapping[str, Any]) -> Any:
    """Return a config of that class. If the class takes no arguments, set its attributes afterwards."""
    own = _own_settings(config_class)
    keywords = {name: arguments[name] for name in own if name in arguments}
    for name, parameter in own.items():
        inside = _class_inside(config_class, parameter)
        inner = {word.removeprefix(f"{name}."): v for word, v in arguments.items() if word.startswith(f"{name}.")}
        if inside is not None and inner:
            keywords[name] = make_config(inside, inner)
    try:
        return config_class(**keywords)
    except TypeError as error:
        if "unexpected keyword" not in str(error) and "takes no arguments" not in str(error):
            raise
        return filled(config_class(), {**arguments, **keywords})


def _class_inside(config_class: Any, parameter: inspect.Parameter) -> Any:
    """Return the class of a setting that is a config itself, by its annotation or default; None if it is none."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        home = vars(sys.modules.get(getattr(config_class, "__module__", ""), types.ModuleType("none")))
        annotation = home.get(annotation.strip("'\"").split("|")[0].strip())
    default = parameter.default if inspect.isclass(parameter.default) else type(parameter.default)
    for candidate in (annotation, default):
        if not inspect.isclass(candidate) or candidate is config_class or candidate.__module__ in PYTHONS:
            continue
        if any(quantity_of(name, ()) in SIZES for name in _names(candidate)):
            return candidate
    return None


def _names(candidate: type) -> Iterable[str]:
    try:
        return [*inspect.signature(candidate).parameters, *vars(candidate)]
    except (TypeError, ValueError):
        return list(vars(candidate))


def _annotation(parameter: inspect.Parameter, modules: list[ModuleType]) -> Any:
    """Return the class in the annotation, looked up by name where the annotation is a string."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        name = annotation.strip("'\"").split("|")[0].strip()
        return next((vars(m)[name] for m in modules if name in vars(m)), annotation)
    return annotation


def _is_config_class(candidate: Any) -> bool:
    return (
        inspect.isclass(candidate)
        and not issubclass(candidate, nn.Module | Mapping)
        and names_sizes(settings_of(candidate))
    )
