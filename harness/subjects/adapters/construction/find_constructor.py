"""Find the constructor of a subject: keyword arguments, a config, a dict, constants of its module, or build(size)."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.construction.build_settings import BuildSettings, unknown_setting
from harness.subjects.adapters.construction.choices import stated_choices
from harness.subjects.adapters.construction.config_class import config_classes, make_config, settings_of
from harness.subjects.adapters.construction.constructor import BY_SIZE, Constructor
from harness.subjects.adapters.construction.keys_read import keys_read
from harness.subjects.adapters.construction.prototype import entries_of, filled, prototypes
from harness.subjects.adapters.construction.setting_names import (
    CHOICES,
    SYNONYMS,
    WIDTH_OR_FEED_FORWARD_WIDTH,
    names_sizes,
    quantity_of,
)
from harness.subjects.adapters.construction.signature import modules_of, name_of, parameters_of
from harness.subjects.adapters.construction.stand_in import UNKNOWN
from harness.subjects.adapters.not_modules.module_builder import module_builder

CONFIG_NAMES = ("config", "cfg", "conf", "args", "params", "settings", "options")  # in the name of a config


def find_constructor(target: Any, module: ModuleType) -> Constructor:
    """Return the constructor of `target`. Raises SubjectError if it is nothing that can be called."""
    if isinstance(target, nn.Module):
        return Constructor(frozenset(), lambda arguments: copy.deepcopy(target), "a module instance")
    if not callable(target):
        raise SubjectError(f"{target!r} is neither a class, nor a function, nor a torch.nn.Module")
    target = module_builder(target, module) or target
    own = parameters_of(target)
    if inspect.isfunction(target) and list(own) == ["size"]:
        return Constructor(frozenset(), lambda arguments: _build(target, arguments["size"]), BY_SIZE)
    modules = modules_of(target, module)
    read = keys_read(target, modules)
    if names_sizes([*own, *read]):
        return _from_keywords(target, own, read, modules)
    parameter = takes_config(target, module)
    return (
        _from_keywords(target, own, read, modules)
        if parameter is None
        else _from_config(target, parameter, own, modules)
    )


def find_part_constructor(target: type[nn.Module], module: ModuleType) -> Constructor:
    """Return the constructor of a part of a GPT, which takes fewer sizes: keyword arguments, or the first is a config.

    Where a parameter is annotated with a class, or called so, it is a config.
    """
    own, modules = parameters_of(target), modules_of(target, module)
    read = keys_read(target, modules)
    required = [p for p in own.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    first = next(iter(required or own.values()), None)
    if (
        first is not None
        and quantity_of(first.name, own) is None
        and not isinstance(first.default, int | float)
        and (any(word in first.name.lower() for word in CONFIG_NAMES) or config_classes(first, target, modules))
        and first.annotation not in (int, float, "int", "float")
    ):
        return _from_config(target, first, own, modules)
    return _from_keywords(target, own, read, modules)


def takes_config(target: Any, module: ModuleType) -> inspect.Parameter | None:
    """Return the parameter of a subject that takes a config; None if it takes its sizes otherwise."""
    own, modules = parameters_of(target), modules_of(target, module)
    if names_sizes([*own, *keys_read(target, modules)]):
        return None
    required = [p for p in own.values() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY]
    parameter = next(iter(required or own.values()), None)
    if parameter is None or parameter.kind is parameter.KEYWORD_ONLY:
        return None
    return parameter if _is_config(parameter, own, required, target, modules) else None


def _is_config(
    parameter: inspect.Parameter,
    own: Mapping[str, inspect.Parameter],
    required: list[inspect.Parameter],
    target: Any,
    modules: list[ModuleType],
) -> bool:
    """Return True if a parameter is a config: one is found for it, or nothing else can be meant by the only one."""
    if quantity_of(parameter.name, own) is not None or isinstance(parameter.default, int | float):
        return False
    if len(required) <= 1 or any(word in parameter.name.lower() for word in CONFIG_NAMES):
        return True
    if any(quantity_of(p.name, own) is None for p in required if p.name != parameter.name):
        return parameter.annotation is not parameter.empty and bool(config_classes(parameter, target, modules))
    return bool(config_classes(parameter, target, modules) or prototypes(parameter, target, modules))


def _from_keywords(
    target: Any, own: Mapping[str, inspect.Parameter], read: Mapping[str, Any], modules: list[ModuleType]
) -> Constructor:
    """Return the constructor of a class or function that takes the sizes as arguments; `read` are keys of **kwargs."""
    words = frozenset([*own, *read])
    unknown = [
        name
        for name, p in own.items()
        if p.default is p.empty and quantity_of(name, words) in (None, "attention", "init", "tied")
    ]
    unknown += [
        name
        for name, default in read.items()
        if default is inspect.Parameter.empty and quantity_of(name, words) is None
    ]
    defaults = {**{name: p.default for name, p in own.items()}, **read}
    kinds = {name: p.kind for name, p in own.items()}

    def call(arguments: dict[str, Any]) -> nn.Module:
        given = {word: value for word, value in arguments.items() if word in words}
        alone = [given.pop(n) for n, kind in kinds.items() if kind is inspect.Parameter.POSITIONAL_ONLY and n in given]
        return _build(target, *alone, **given)

    description = "keyword arguments" if words else "a call without arguments"
    choices = stated_choices(own, target, modules)
    return Constructor(words, call, description, choices, _numbers(defaults), tuple(unknown))


def _from_config(
    target: Any,
    parameter: inspect.Parameter,
    own: Mapping[str, inspect.Parameter],
    modules: list[ModuleType],
) -> Constructor:
    """Return the constructor of a subject that takes a config: of a class, a copy of a prototype, or a dict."""
    beside = [
        name for name, p in own.items() if name != parameter.name and (p.default is p.empty or p.kind is p.KEYWORD_ONLY)
    ]
    classes = config_classes(parameter, target, modules)
    copied = [] if classes else prototypes(parameter, target, modules)
    defaults: dict[str, Any] = {name: own[name].default for name in beside}
    words: frozenset[str]
    if classes:
        defaults |= {word: p.default for c in classes for word, p in settings_of(c).items()}
        words = frozenset(word for c in classes for word in settings_of(c))
    elif copied:
        defaults |= {word: value for _, p in copied for word, value in entries_of(p).items()}
        words = frozenset(word for _, p in copied for word in entries_of(p))
    else:
        # Which keys are read from a dict is unknown. The sizes must be among them; choices need not be.
        words = frozenset(w for quantity, ws in SYNONYMS.items() if quantity not in CHOICES for w in ws)
        words |= frozenset(WIDTH_OR_FEED_FORWARD_WIDTH)
    stated = {**own, **{n: p for c in classes for n, p in settings_of(c).items()}}
    choices = stated_choices(stated, classes or target, modules)

    read: set[str] = set()

    def call(arguments: dict[str, Any]) -> nn.Module:
        keywords = {key: value for key, value in arguments.items() if key in beside}
        settings = BuildSettings(arguments)
        configs: list[Callable[[], Any]] = [functools.partial(make_config, c, arguments) for c in classes]
        configs += [functools.partial(filled, prototype, arguments) for _, prototype in copied]
        configs += [  # a dict that is read by attributes
            functools.partial(BuildSettings, filled(p, arguments)) for _, p in copied if isinstance(p, dict)
        ]
        if not copied:
            configs.append(lambda: settings)
        module = _build_from_first(target, parameter, configs, keywords)
        read.update(settings.names_read)
        again = settings.corrected()
        return _build_from_first(target, parameter, [lambda: BuildSettings(again)], keywords) if again else module

    description = f"a {classes[0].__name__}" if classes else f"a copy of {copied[0][0]}" if copied else "a dict"
    unknown = tuple(
        name for name in beside if own[name].default is inspect.Parameter.empty and quantity_of(name, own) is None
    )
    return Constructor(words | frozenset(beside), call, description, choices, _numbers(defaults), unknown, read=read)


def _numbers(defaults: Mapping[str, Any]) -> dict[str, Any]:
    return {n: v for n, v in defaults.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _build_from_first(
    target: Any, parameter: inspect.Parameter, configs: list[Callable[[], Any]], keywords: dict[str, Any]
) -> nn.Module:
    """Return the module built from the first config that raises no error typical of a wrong config class.

    If none fits, raise the first error: it comes from the most likely config.
    """
    first: Exception | None = None
    for make in configs:
        try:
            return _build(target, **{parameter.name: make()}, **keywords)
        except (TypeError, AttributeError, KeyError) as error:
            first = first or error
    assert first is not None
    if isinstance(first, KeyError) or UNKNOWN in str(first):
        raise SubjectError(
            f"{name_of(target)} reads '{unknown_setting(first)}' from its config, {UNKNOWN} under that name"
        ) from first
    raise first


def _build(target: Callable[..., Any], *args: Any, **kwargs: Any) -> nn.Module:
    module = target(*args, **kwargs)
    if not isinstance(module, nn.Module):
        raise SubjectError(f"{name_of(target)} returned a {type(module).__name__}, expected a torch.nn.Module")
    return module
