"""Find the object that `FILE.py:NAME` or `package.module:NAME` names."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core.errors import SubjectError, did_you_mean
from harness.core.shipped_packages import prefer_user_modules
from harness.subjects.adapters.importing.project import Project
from harness.subjects.adapters.likely_models import likely_models

FORM = "expected FILE.py:NAME or package.module:NAME"


def locate(spec: str) -> tuple[Any, Project]:
    """Return the named object and the project that it was imported from.

    A module of the current folder takes precedence over a shipped package of the same name. Raises SubjectError with a
    message of one line if the file, the import or the name fails.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise SubjectError(f"'{spec}' names no attribute; {FORM}{_suggestion(Path(spec))}")
    if where.endswith(".py"):
        if not Path(where).is_file():
            raise SubjectError(f"{where} is not a file (looked from {Path.cwd()}); {FORM}")
    else:
        prefer_user_modules(Path.cwd())
    project = Project(where, name)
    return named(where, name, project.module), project


def _suggestion(path: Path) -> str:
    """Return the model that a file seems to be about, as the user may name it; "" if there is none."""
    try:
        found = likely_models(path)
    except (OSError, SyntaxError, ValueError):
        return ""
    return f": {path}:{found[0]}?" if found else ""


def locate_module(spec: str) -> tuple[Any, ModuleType]:
    """Return the object that `package.module:NAME` names, and its module, as the import system finds it."""
    where, _, name = spec.rpartition(":")
    module = importlib.import_module(where)
    return named(where, name, module), module


def named(where: str, name: str, module: ModuleType) -> Any:
    """Return an attribute of a module by its dotted name. Raises SubjectError if there is none."""
    target: Any = module
    for word in name.split("."):
        try:
            target = getattr(target, word)
        except AttributeError:
            known = [n for n in vars(target) if not n.startswith("_")] if hasattr(target, "__dict__") else []
            raise SubjectError(
                f"{where} has no '{word}'; {did_you_mean(word, known) if known else 'it defines nothing'}"
            ) from None
    return target


def exported(module: ModuleType | None, name: str) -> Any:
    """Return what a module has under a name, or exports and imports at the first use; None if there is nothing.

    Only of names in `__all__` its `__getattr__` is asked: it is the subject's code, which may do anything.
    """
    own = vars(module) if module is not None else {}
    if name in own or name not in own.get("__all__", ()):
        return own.get(name)
    try:
        return getattr(module, name, None)
    except Exception:  # a package that is missing, or a mistake of the module's own
        return None
