"""The settings that a constructor takes as **kwargs: the keys that its source reads, and what it passes them on to."""

from __future__ import annotations

import ast
import inspect
import textwrap
from types import ModuleType
from typing import Any

from torch import nn

from harness.core.errors import SubjectError
from harness.subjects.adapters.construction.signature import parameters_of

EMPTY = inspect.Parameter.empty
METHODS = ("get", "pop", "setdefault")


def keys_read(target: Any, modules: list[ModuleType]) -> dict[str, Any]:
    """Return the keys that are read of **kwargs, each with its default, or EMPTY where it has to be given.

    They are kwargs["x"], kwargs.get("x", 1), kwargs.pop("x"), and the parameters of what `**kwargs` is passed on to.
    """
    function = vars(target).get("__init__") if inspect.isclass(target) else target
    if not inspect.isfunction(function):
        return {}
    name = next((p.name for p in inspect.signature(function).parameters.values() if p.kind is p.VAR_KEYWORD), None)
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return {}
    found: dict[str, Any] = {}
    for node in ast.walk(tree) if name is not None else ():
        if isinstance(node, ast.Subscript) and _is(node.value, name) and isinstance(node.slice, ast.Constant):
            found[str(node.slice.value)] = EMPTY
        elif isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute) and _is(node.func.value, name) and node.func.attr in METHODS:
                found |= _of_method(node)
            elif any(k.arg is None and _is(k.value, name) for k in node.keywords) and isinstance(node.func, ast.Name):
                found |= _of_callee(node.func.id, [function.__globals__, *map(vars, modules)])
    return found


def _of_method(node: ast.Call) -> dict[str, Any]:
    """Return the key of kwargs.get("x", 1) with its default."""
    words = [a.value if isinstance(a, ast.Constant) else None for a in node.args]
    if not words or not isinstance(words[0], str):
        return {}
    assert isinstance(node.func, ast.Attribute)
    return {words[0]: words[1] if len(words) > 1 else EMPTY if node.func.attr == "pop" else None}


def _of_callee(name: str, scopes: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the parameters of what **kwargs is passed on to, such as a config class."""
    callee = next((scope[name] for scope in scopes if name in scope), None)
    if callee is None or (inspect.isclass(callee) and issubclass(callee, nn.Module)):
        return {}
    try:
        return {word: parameter.default for word, parameter in parameters_of(callee).items()}
    except SubjectError:
        return {}


def _is(node: ast.expr, name: str | None) -> bool:
    return isinstance(node, ast.Name) and node.id == name
