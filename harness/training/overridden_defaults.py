"""The defaults of parameters that no call of a program leaves to them: a value there sets nothing."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef
Default = tuple[str, tuple[int, int]]  # the file, and the line and column of the expression


def overridden_defaults(files: Sequence[Path]) -> set[Default]:
    """Return the defaults of functions that are called by their names, and that each of these calls overrides.

    A function that is called in no file, or is handed to another one, keeps its defaults.
    """
    trees: dict[str, ast.Module] = {}
    for file in files:
        try:
            trees[str(file)] = ast.parse(file.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue
    calls: dict[str, list[ast.Call]] = defaultdict(list)
    named: dict[str, int] = defaultdict(int)
    for tree in trees.values():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                calls[_name(node.func)].append(node)
            if isinstance(node, ast.Name | ast.Attribute):
                named[_name(node)] += 1
    return {
        (file, (default.lineno, default.col_offset))
        for file, tree in trees.items()
        for name, function, is_method in _functions(tree)
        for parameter, place, default in _defaults(function, is_method)
        if 0 < named[name] == len(calls[name]) and all(_gives(call, parameter, place) for call in calls[name])
    }


def _functions(tree: ast.Module) -> Iterator[tuple[str, Function, bool]]:
    """Yield the name by which each function is called, the function, and whether it is a method."""
    methods = {
        child: node.name if child.name == "__init__" else child.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        for child in node.body
        if isinstance(child, Function)
    }
    for node in ast.walk(tree):
        if isinstance(node, Function):
            yield methods.get(node, node.name), node, node in methods


def _defaults(function: Function, is_method: bool) -> Iterator[tuple[str, int | None, ast.expr]]:
    """Yield each parameter that has a default, its place among the arguments of a call, and the default."""
    given = [*function.args.posonlyargs, *function.args.args]
    first = len(given) - len(function.args.defaults)
    for place, default in enumerate(function.args.defaults, first):
        yield given[place].arg, place - is_method, default
    for argument, keyword_default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True):
        if keyword_default is not None:
            yield argument.arg, None, keyword_default


def _gives(call: ast.Call, parameter: str, place: int | None) -> bool:
    """Return True if a call gives a parameter a value; what `*` and `**` give is not known."""
    by_place = place is not None and len(call.args) > place
    starred = any(isinstance(each, ast.Starred) for each in call.args)
    return (by_place and not starred) or any(keyword.arg == parameter for keyword in call.keywords)


def _name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
