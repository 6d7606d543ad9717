"""A config with default values as a prototype: find it beside the subject, copy it, set the sizes."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.subjects.adapters.construction.setting_names import names_sizes
from harness.subjects.adapters.construction.signature import name_of

MOST = 4  # prototypes that are tried
DEPTH = 3  # levels of settings inside settings


def prototypes(parameter: inspect.Parameter, target: Any, modules: list[ModuleType]) -> list[tuple[str, Any]]:
    """Return configs with default values, each with a description.

    They are minGPT's get_default_config(), the default of the parameter, and objects of the module that name sizes.
    """
    found: list[tuple[str, Any]] = []
    make = getattr(target, "get_default_config", None)
    if callable(make):
        found.append((f"{name_of(target)}.get_default_config()", make()))
    if parameter.default is not parameter.empty and parameter.default is not None:
        found.append((f"the default of '{parameter.name}'", parameter.default))
    for module in modules[:1]:
        for name, value in vars(module).items():
            if (
                not name.startswith("__")
                and not inspect.isclass(value)
                and not isinstance(value, ModuleType | nn.Module)
            ):
                found.append((name, value))
    plain = [(name, value) for name, value in found if names_sizes(entries_of(value, 1))]
    return (plain or [(name, value) for name, value in found if _contains_one(value)])[:MOST]


def _contains_one(prototype: Any) -> bool:
    """Return True if one setting of a config is a config that names sizes. A table of presets has several."""
    return sum(names_sizes(entries_of(value, DEPTH - 1)) for value in entries_of(prototype, 1).values()) == 1


def entries_of(prototype: Any, depth: int = DEPTH) -> dict[str, Any]:
    """Return the settings of a config, by name: the items of a mapping, or the attributes of an object.

    Settings inside another have its name before theirs: `model.n_embd`.
    """
    if isinstance(prototype, Mapping):
        own = {name: value for name, value in prototype.items() if isinstance(name, str)}
    elif callable(prototype) or isinstance(prototype, str | int | float | tuple | list | set | ModuleType | nn.Module):
        return {}
    else:
        named = getattr(prototype, "__dict__", None)
        own = {n: v for n, v in named.items() if not n.startswith("_")} if isinstance(named, dict) else {}
    inner = {
        f"{name}.{word}": item
        for name, value in own.items()
        if depth > 1
        for word, item in entries_of(value, depth - 1).items()
    }
    return {**own, **inner}


def filled(prototype: Any, arguments: Mapping[str, Any]) -> Any:
    """Return a copy of a config with the values of `arguments` in place of its own. The name of a preset is removed."""
    config = copy.deepcopy(prototype)
    own = [*config] if isinstance(config, Mapping) else [*entries_of(config, 1), *dir(type(config))]
    values = {name: arguments[name] for name in own if name in arguments}
    for name, value in entries_of(config, 1).items():
        inner = {word.removeprefix(f"{name}."): v for word, v in arguments.items() if word.startswith(f"{name}.")}
        if inner:
            values[name] = filled(value, inner)
    if isinstance(config, dict):
        config.update(values)
        return config
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return dataclasses.replace(config, **values)
    for name, value in values.items():
        setattr(config, name, value)
    if getattr(config, "model_type", None) is not None and isinstance(config.model_type, str):
        config.model_type = None  # minGPT's preset, which refuses sizes beside it
    return config
