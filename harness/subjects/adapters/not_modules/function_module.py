"""A forward pass that is a function over a nest of parameters, `def gpt(params, ids)`, as a module."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.construction.setting_names import SIZES, names_sizes, quantity_of
from harness.subjects.adapters.not_modules.parameter_nest import Place, mapped, register_nest

# Names of the parameter that takes the nest, and of the one that takes a config.
NESTS = (
    "params",
    "parameters",
    "weights",
    "p",
    "theta",
    "w",
    "variables",
    "tree",
    "state_dict",
    "state",
    "model",
)
CONFIGS = ("config", "cfg", "conf", "hparams", "hps", "args", "options", "settings", "c")
Parameters = Mapping[str, inspect.Parameter]


def builder_of_function(target: Any, module: ModuleType) -> Callable[..., nn.Module] | None:
    """Return a function that builds a module around `target`, a forward pass over parameters; None if it is none.

    The parameters come from a function beside it that takes sizes and returns them. The builder takes what that takes,
    and the sizes that the forward pass itself needs.
    """
    if not inspect.isfunction(target):
        return None
    own = dict(inspect.signature(target).parameters)
    nest = next((name for name in own if name in NESTS), None)
    if len(own) < 2 or names_sizes(own) or (nest is None and not {"wte", "wpe"} <= set(own)):
        return None
    initial = _initial_function(target, module)
    return None if initial is None else _builder(target, initial, nest)


def _initial_function(target: Any, module: ModuleType) -> Callable[..., Any] | None:
    """Return the function of the module that is likeliest to make the parameters: it takes sizes, and no parameters."""
    found: list[tuple[bool, int, Callable[..., Any]]] = []
    for name, function in vars(module).items():
        if not inspect.isfunction(function) or function is target:
            continue
        words = list(inspect.signature(function).parameters)
        if not any(word in NESTS for word in words) and (names_sizes(words) or (words and words[0].lower() in CONFIGS)):
            likely = any(word in name.lower() for word in ("init", "param", "weight", "create", "make", "new"))
            found.append((not likely, len(found), function))
    return min(found, key=lambda each: each[:2])[2] if found else None


def _builder(target: Any, initial: Callable[..., Any], nest: str | None) -> Callable[..., nn.Module]:
    made_by, own = dict(inspect.signature(initial).parameters), dict(inspect.signature(target).parameters)
    quantities = {quantity_of(name, made_by) for name in made_by}
    more = {  # the heads, mostly: no parameter's shape depends on them
        name: parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.items()
        if (quantity := quantity_of(name, own)) in (*SIZES, "head_width") and quantity not in quantities
    }
    kind: type[FunctionModule] = type(target.__name__, (FunctionModule,), {})

    @functools.wraps(initial)
    def build(*args: Any, **kwargs: Any) -> nn.Module:
        beside = {name: kwargs.pop(name) for name in more if name in kwargs}
        bound = inspect.signature(initial).bind(*args, **kwargs)
        bound.apply_defaults()
        parameters = initial(*args, **kwargs)
        if not isinstance(parameters, Mapping | list | tuple):
            raise SubjectError(
                f"{target.__name__} is a function over parameters, and {initial.__name__} beside it returned a "
                f"{type(parameters).__name__}; expected a dict or a list of tensors"
            )
        return kind(target, nest, parameters, {**bound.arguments, **beside})

    build.__signature__ = inspect.Signature([*made_by.values(), *more.values()])  # type: ignore[attr-defined]
    return build


class FunctionModule(nn.Module):
    """A module whose forward pass is a function of its parameters and of the settings that it was built with.

    `nest`: the function's parameter for all of them; None if it takes the entries one by one.
    """

    def __init__(
        self, function: Callable[..., Any], nest: str | None, parameters: Any, settings: Mapping[str, Any]
    ) -> None:
        super().__init__()
        self._function, self._nest = function, nest
        self._places = register_nest(self, parameters)
        own = inspect.signature(function).parameters
        entries = set(parameters) if nest is None else {nest}
        found = {name: _setting(name, own, settings) for name in own if name not in entries}
        self._given = {name: value for name, value in found.items() if value is not None}
        free = [parameter for name, parameter in own.items() if name not in entries and name not in self._given]
        type(self).forward = _forward_taking(free)

    def _call(self, given: Mapping[str, Any]) -> Any:
        parameters = dict(self.named_parameters())
        nest = mapped(self._places, Place, lambda path, place: parameters[place.path])
        return self._function(**({self._nest: nest} if self._nest else nest), **self._given, **given)


def _forward_taking(free: list[inspect.Parameter]) -> Callable[..., Any]:
    """Return a forward pass with these parameters."""
    signature = inspect.Signature([inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD), *free])

    def forward(self: FunctionModule, *args: Any, **kwargs: Any) -> Any:
        given = dict(signature.bind(self, *args, **kwargs).arguments)
        given.pop("self")
        return self._call(given)

    forward.__signature__ = signature  # type: ignore[attr-defined]
    return forward


def _setting(name: str, own: Parameters, settings: Mapping[str, Any]) -> Any:
    """Return the value of a setting by its name, its quantity, or as the config; None if there is none."""
    if name in settings:
        return settings[name]
    quantity = quantity_of(name, own)
    if quantity in (*SIZES, "head_width", "epsilon"):
        return next((value for word, value in settings.items() if quantity_of(word, settings) == quantity), None)
    if name.lower() in CONFIGS:
        return next((value for word, value in settings.items() if word.lower() in CONFIGS), None)
    return None
