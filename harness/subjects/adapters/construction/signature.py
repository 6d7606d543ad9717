"""The signature of a subject: the parameters of its constructor, base classes included."""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any

from harness.core.errors import SubjectError


def parameters_of(target: Any) -> dict[str, inspect.Parameter]:
    """Return the named parameters of a callable; of a class that passes **kwargs on, those of its base classes too.

    Raises SubjectError for a callable without a signature.
    """
    found: dict[str, inspect.Parameter] = {}
    bases = (
        [vars(c)["__init__"] for c in target.__mro__ if "__init__" in vars(c)] if inspect.isclass(target) else [target]
    )
    for function in bases:
        try:
            parameters = list(inspect.signature(function).parameters.values())
        except (TypeError, ValueError) as error:
            raise SubjectError(f"{target!r} has no signature that can be read: {error}") from error
        for parameter in parameters[1:] if inspect.isclass(target) else parameters:
            own = function is bases[0]
            if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                continue
            # Of a base class only what can be passed on by keyword: its config is a parameter of the subclass already.
            if own or parameter.kind is parameter.KEYWORD_ONLY or parameter.default is not parameter.empty:
                found.setdefault(parameter.name, parameter)
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            if not any(p.kind is p.VAR_POSITIONAL for p in parameters):
                break
        elif not found and function is not bases[0]:
            continue
    if not found and inspect.isclass(target):  # def __init__(self, *args, **kwargs): a base class's parameters
        for function in bases[1:]:
            parameters = list(inspect.signature(function).parameters.values())[1:]
            named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
            if named:
                return {p.name: p for p in named}
    return found


def modules_of(target: Any, module: ModuleType) -> list[ModuleType]:
    """Return `module` and the modules in which the subject's base classes are defined, without torch's."""
    bases = target.__mro__ if inspect.isclass(target) else ()
    named = [sys.modules.get(c.__module__) for c in bases if c.__module__.split(".")[0] not in ("torch", "builtins")]
    return list(dict.fromkeys([module, *(m for m in named if m is not None)]))


def name_of(target: Any) -> str:
    """Return the name of a class or function, or the class of another object."""
    return getattr(target, "__name__", type(target).__name__)


def format_signature(target: Any) -> str:
    """Return the parameters in parentheses, without annotations."""
    return f"({', '.join(parameters_of(target))})"
