"""Packages that ship with the harness, or are installed, importable where the user has modules of the same name."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

from harness.core.error_text import is_user_file

HOME = Path(__file__).resolve().parents[2]  # the folder of harness/, gpt/ and verifications/
SUITES = HOME / "verifications"
# Modules that are out of sys.modules at the moment because another package has their name.
_set_aside: dict[str, ModuleType] = {}
_give_way: set[str] = set()  # installed packages that are imported already, and give way to the user's


def prefer_user_modules(folder: Path) -> None:
    """Remove packages from sys.modules whose names `folder` has too, so that an import finds the user's.

    They are the shipped ones and those of `installed_packages(give_way=True)`. An example is a user's own gpt.py. The
    user's modules then stay imported, since their functions may import them again later.
    """
    if folder.resolve() == HOME:
        return
    shipped = {name.split(".")[0] for name, module in sys.modules.items() if _is_shipped(module)} - {"harness"}
    for name in shipped | _give_way:
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            _set_aside.update(_remove_modules(name))


@contextlib.contextmanager
def shipped_package(name: str) -> Iterator[None]:
    """Make the top-level package `name` the shipped one inside the block."""
    loaded = sys.modules.get(name)
    if loaded is not None and _is_shipped(loaded):
        yield
        return
    users = _remove_modules(name)
    restore_installed(name)
    try:
        if name not in sys.modules:
            sys.path.insert(0, str(HOME))
            try:
                importlib.import_module(name)
            finally:
                sys.path.remove(str(HOME))
        yield
    finally:
        if users:
            _set_aside.update(_remove_modules(name))
            sys.modules.update(users)


@contextlib.contextmanager
def installed_packages(*, give_way: bool = False) -> Iterator[None]:
    """Let imports inside the block find installed packages and Python's own before the user's files.

    The user's folders are the last of sys.path meanwhile, and modules of theirs that have the name of an installed
    package (a matplotlib.py beside the GPT) are out of sys.modules. With `give_way`, a subject that is read later
    finds its own modules all the same.
    """
    before = list(sys.path)
    own = [folder for folder in before if is_user_file(os.path.join(os.path.abspath(folder), "file.py"))]
    installed = [folder for folder in before if folder not in own]
    users: dict[str, ModuleType] = {}
    for name in [name for name, module in sys.modules.items() if "." not in name and _of_user(module)]:
        if PathFinder.find_spec(name, installed) is not None:
            users |= _remove_modules(name)
    sys.path[:] = [*installed, *own]
    loaded = set(sys.modules)
    try:
        yield
    finally:
        if give_way:
            _give_way.update(name for name in set(sys.modules) - loaded if "." not in name)
        sys.path[:] = before
        for name in {name.split(".")[0] for name in users}:
            _remove_modules(name)
        sys.modules.update(users)


def restore_installed(name: str) -> None:
    """Have the installed package in sys.modules in place of the user's; if it is not imported yet, neither of them."""
    _remove_modules(name)
    sys.modules.update({key: module for key, module in _set_aside.items() if key.split(".")[0] == name})


def _of_user(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and is_user_file(os.path.abspath(file))


def _is_shipped(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent.parent == HOME and Path(file).name == "__init__.py"


def _remove_modules(name: str) -> dict[str, ModuleType]:
    names = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
    return {key: sys.modules.pop(key) for key in names}
