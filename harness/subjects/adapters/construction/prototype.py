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
    return [(name, value) for name, value in found if names_sizes(entries_of(value))][:MOST]


def entries_of(prototype: Any) -> list[str]:
    """Return the names of the settings in a config: the keys of a mapping, or the attributes of an object."""
    if isinstance(prototype, Mapping):
        return [name for name in prototype if isinstance(name, str)]
    if callable(prototype) or isinstance(prototype, str | int | float | tuple | list | set):
        return []
    own = getattr(prototype, "__dict__", None)
    return [name for name in own if not name.startswith("_")] if isinstance(own, dict) else []


def filled(prototype: Any, arguments: Mapping[str, Any]) -> Any:
    """Return a copy of a config with the values of `arguments` in place of its own. The name of a preset is removed."""
    config = copy.deepcopy(prototype)
    values = {name: arguments[name] for name in [*entries_of(config), *dir(type(config))] if name in arguments}
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
