"""Find the functions with which a program trains on several ranks."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from harness.subjects.ranks.program import DATA, NAMES, WORDS, WRAPS, ParallelProgram, RankFunction

# Modules beside the model's in its package that programs have such functions in.
MODULES = ("parallel", "parallelism", "distributed", "parallelize", "sharding", "ddp", "fsdp", "tensor_parallel")
LIBRARIES = ("torch", "transformers", "accelerate", "numpy", "builtins")


def parallel_program_of(kind: type, module: ModuleType | None) -> ParallelProgram:
    """Return the functions for several ranks: of the class, of its module, or of a module beside it, the first found.

    A function that takes what no check of ranks can give is not used. Without one that wraps a model, there is none.
    """
    functions: dict[str, RankFunction] = {}
    for place in _places(kind, module):
        for role, function in _roles(place):
            found = RankFunction.of(function)
            if found is not None:
                functions.setdefault(role, found)
    return ParallelProgram(functions)


def _places(kind: type, module: ModuleType | None) -> Iterator[Any]:
    yield kind
    if module is None:
        return
    yield module
    package = module.__package__
    if not package or package.split(".")[0] in (*LIBRARIES, "harness"):  # the harness's specimens are single files
        return
    for name in MODULES:
        full = f"{package}.{name}"
        if importlib.util.find_spec(full) is not None:
            yield importlib.import_module(full)


def _roles(place: Any) -> Iterator[tuple[str, Any]]:
    """Yield (role, function) for each function of a class or of a module, those that it imports included."""
    members = vars(place)
    for role, names in NAMES.items():
        for name in names:
            if _is_own(members.get(name)):
                yield role, members[name]
                break
    for name in WRAPS:
        if _is_own(function := members.get(name)):
            yield _kind_in_source(function), function


def _is_own(member: Any) -> bool:
    return inspect.isfunction(member) and member.__module__.split(".")[0] not in LIBRARIES


def _kind_in_source(function: Any) -> str:
    """Return the kind of parallelism that a wrapping function's source names."""
    source = inspect.getsource(function)
    return next((kind for kind, words in WORDS.items() if any(word in source for word in words)), DATA)
