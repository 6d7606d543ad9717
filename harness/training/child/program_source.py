"""A training program as code: a script, a module or a function, run as Python would run it."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from harness.core.errors import SubjectError


@dataclass(frozen=True)
class ProgramSource:
    """Where a program is: a script's path or a module's name, and the function to call, if one is named."""

    target: str
    function: str | None = None

    @classmethod
    def parse(cls, text: str) -> ProgramSource:
        """Return the source of `train.py`, `pkg.module`, `train.py:main` or `pkg.module:main`."""
        target, colon, function = text.rpartition(":")
        return cls(target, function) if colon and function.isidentifier() else cls(text)

    @property
    def is_script(self) -> bool:
        """Return True for a path, False for a module's name."""
        return self.target.endswith(".py") or os.sep in self.target

    def find(self, folder: Path) -> Path:
        """Return the file of the program, looked for in `folder` first. Nothing is imported. Raises `SubjectError`."""
        if self.is_script:
            path = folder / self.target
            if not path.is_file():
                raise SubjectError(f"{self.target}: no such file in {folder}; give the path of a script")
            return path.resolve()
        inside = Path(*self.target.split("."))
        run = "__main__.py" if self.function is None else "__init__.py"
        for root in (folder, *map(Path, sys.path)):
            for path in (root / inside.with_suffix(".py"), root / inside / run):
                if path.is_file():
                    return path.resolve()
        raise SubjectError(
            f"{self.target}: no script, and no module in {folder} or among the installed ones; "
            "give train.py, package.module or package.module:function"
        )


def constants_of(path: Path) -> dict[str, Any]:
    """Return the top-level constants of a script: names that are assigned one literal, once.

    Raises `SubjectError` if the script cannot be read or parsed.
    """
    found: dict[str, Any] = {}
    assigned: list[str] = []
    for target, value in _assignments(_parse(path)):
        assigned.append(target)
        try:
            found[target] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            continue
    return {name: value for name, value in found.items() if assigned.count(name) == 1}


def compiled(path: Path, constants: Mapping[str, Any]) -> CodeType:
    """Return the code of a script, with these top-level constants replaced; the line numbers stay."""
    tree = _parse(path)
    for statement in tree.body:
        for target, value in _assignments(ast.Module([statement], [])):
            if target in constants:
                new = ast.parse(repr(constants[target]), mode="eval").body
                for node in ast.walk(new):
                    ast.copy_location(node, value)
                statement.value = new  # type: ignore[attr-defined]  # an Assign or AnnAssign has one
    return compile(tree, str(path), "exec", dont_inherit=True)


def run_as_main(source: ProgramSource, arguments: Sequence[str], constants: Mapping[str, Any]) -> None:
    """Run a program in this process as `python train.py ARGUMENTS` or `python -m pkg.module ARGUMENTS` would.

    The module `__main__` stays, so that what the program has defined can be used after it ended.
    """
    path = source.find(Path.cwd())
    sys.argv[:] = [source.target if source.is_script else str(path), *arguments]
    sys.path.insert(0, str(path.parent) if source.is_script else os.getcwd())
    if source.function is not None:
        _function(source, path)()
        return
    main = ModuleType("__main__")
    main.__file__ = str(path)
    main.__dict__["__builtins__"] = __builtins__
    if not source.is_script:
        main.__spec__ = importlib.util.find_spec(_module_name(source, path))
        main.__package__ = main.__spec__.parent if main.__spec__ else None
    sys.modules["__main__"] = main
    exec(compiled(path, constants), main.__dict__)  # the program itself


def _function(source: ProgramSource, path: Path) -> Callable[[], object]:
    """Return the function that the user named. A script is imported under the name of its file."""
    module = importlib.import_module(path.stem if source.is_script else source.target)
    function: Callable[[], object] | None = getattr(module, source.function or "", None)
    if not callable(function):
        raise SubjectError(f"{source.target}: has no function '{source.function}'; give the name of one")
    return function


def _module_name(source: ProgramSource, path: Path) -> str:
    return f"{source.target}.__main__" if path.name == "__main__.py" else source.target


def _parse(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes(), str(path))
    except (OSError, SyntaxError, ValueError) as error:
        raise SubjectError(f"{path}: cannot be read as Python ({error})") from None


def _assignments(tree: ast.Module) -> list[tuple[str, ast.expr]]:
    """Return the top-level assignments of one name, as name and value."""
    found: list[tuple[str, ast.expr]] = []
    for node in tree.body:
        if isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
            found.append((node.targets[0].id, node.value))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            found.append((node.target.id, node.value))
    return found
