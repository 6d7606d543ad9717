"""Find the object that `FILE.py:NAME` or `package.module:NAME` names."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.core.error_text import error_place
from harness.core.errors import SubjectError, did_you_mean
from harness.core.shipped_packages import make_way

FORM = "expected FILE.py:NAME or package.module:NAME"


def locate(spec: str) -> tuple[Any, ModuleType]:
    """The named object and its module. Raises SubjectError, in one line, for whatever can go wrong on the way.

    A name that both the current folder and a shipped package have is the folder's.
    """
    where, _, name = spec.rpartition(":")
    if not where or not name:
        raise SubjectError(f"'{spec}' names no attribute; {FORM}")
    if where.endswith(".py"):
        return _named(where, name, _import_file(Path(where)))
    make_way(Path.cwd())
    return locate_module(spec)


def locate_module(spec: str) -> tuple[Any, ModuleType]:
    """The object that `package.module:NAME` names, whatever the current folder holds."""
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
    make_way(folder)
    name = f"_subject_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and copy look their module up here
    # As with `python FILE.py`, the file's own folder is where its imports are found first.
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
    """A file of a package is imported as such: it may say `from .config import ...`, or name its package."""
    words, root = [path.stem], path.parent
    while (root / "__init__.py").is_file():
        words.insert(0, root.name)
        root = root.parent
    make_way(root)
    sys.path.insert(0, str(root))
    return _import_module(".".join(words if path.stem != "__init__" else words[:-1]))


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))  # the `pytest` command, unlike `python -m pytest`, leaves it out
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
        place = error_place(error).removesuffix(" in <module>")
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{name} does not import: {what}{f' ({place})' if place else ''}"
