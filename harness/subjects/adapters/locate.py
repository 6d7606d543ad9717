"""Find the object that `FILE.py:NAME` or `package.module:NAME` names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core.error_text import error_location
from harness.core.errors import SubjectError, did_you_mean
from harness.core.shipped_packages import prefer_user_modules

FORM = "expected FILE.py:NAME or package.module:NAME"


def locate(spec: str) -> tuple[Any, ModuleType]:
    """Return the named object and its module.

    A module of the current folder takes precedence over a shipped package of the same name. Raises SubjectError with a
    message of one line if the file, the import or the name fails.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise SubjectError(f"'{spec}' names no attribute; {FORM}")
    if where.endswith(".py"):
        return _named(where, name, _import_file(Path(where)))
    prefer_user_modules(Path.cwd())
    return locate_module(spec)


def locate_module(spec: str) -> tuple[Any, ModuleType]:
    """Return the object that `package.module:NAME` names, and its module, as the import system finds it."""
    where, _, name = spec.rpartition(":")
    return _named(where, name, _import_module(where))


def _named(where: str, name: str, module: ModuleType) -> tuple[Any, ModuleType]:
    target: Any = module
    for word in name.split("."):
        if not hasattr(target, word):
            known = [n for n in vars(target) if not n.startswith("_")] if hasattr(target, "__dict__") else []
            raise SubjectError(
                f"{where} has no '{word}'; {did_you_mean(word, known) if known else 'it defines nothing'}"
            )
        target = getattr(target, word)
    return target, module


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise SubjectError(f"{path} is not a file (looked from {Path.cwd()}); {FORM}")
    folder = path.resolve().parent
    if (folder / "__init__.py").is_file():
        return _import_from_package(path.resolve())
    prefer_user_modules(folder)
    name = f"_subject_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and copy look up the module here
    # As with `python FILE.py`, imports are looked up in the file's own folder first.
    sys.path.insert(0, str(folder))
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[name]
        raise SubjectError(_did_not_import(str(path), error)) from error
    return module


def _import_from_package(path: Path) -> ModuleType:
    """Import a file as part of its package: it may use `from .config import ...`, or its package's name."""
    words, root = [path.stem], path.parent
    while (root / "__init__.py").is_file():
        words.insert(0, root.name)
        root = root.parent
    prefer_user_modules(root)
    sys.path.insert(0, str(root))
    return _import_module(".".join(words if path.stem != "__init__" else words[:-1]))


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the `pytest` command, unlike `python -m pytest`, does not add it
    try:
        return importlib.import_module(name)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise SubjectError(_did_not_import(name, error)) from error


def _did_not_import(name: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        place = error_location(error).removesuffix(" in <module>")
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{name} does not import: {what}{f' ({place})' if place else ''}"
