"""The packages that ship with the harness, importable even where the user has modules of the same name."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

HOME = Path(__file__).resolve().parents[2]  # the folder that holds harness/, gpt/ and verifications/
SUITES = HOME / "verifications"
# Modules of the shipped packages that have made way for the user's, to come back when they are asked for.
_aside: dict[str, ModuleType] = {}


def make_way(folder: Path) -> None:
    """Forget shipped packages under names that `folder` has too, as a user's own gpt.py: an import then finds theirs.

    Theirs stay imported: a function of theirs may import them again, late.
    """
    if folder.resolve() == HOME:
        return
    for name in {name.split(".")[0] for name, module in sys.modules.items() if _is_shipped(module)} - {"harness"}:
        if (folder / f"{name}.py").is_file() or (folder / name / "__init__.py").is_file():
            _aside.update(_take_out(name))


@contextlib.contextmanager
def shipped(name: str) -> Iterator[None]:
    """While open, the top-level package `name` is the shipped one."""
    loaded = sys.modules.get(name)
    if loaded is not None and _is_shipped(loaded):
        yield
        return
    theirs = _take_out(name)
    sys.modules.update({key: module for key, module in _aside.items() if key.split(".")[0] == name})
    try:
        if name not in sys.modules:
            sys.path.insert(0, str(HOME))
            try:
                importlib.import_module(name)
            finally:
                sys.path.remove(str(HOME))
        yield
    finally:
        if theirs:
            _aside.update(_take_out(name))
            sys.modules.update(theirs)


def _is_shipped(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and Path(file).parent.parent == HOME and Path(file).name == "__init__.py"


def _take_out(name: str) -> dict[str, ModuleType]:
    names = [key for key in sys.modules if key == name or key.startswith(f"{name}.")]
    return {key: sys.modules.pop(key) for key in names}
