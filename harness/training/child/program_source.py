"""A training program as code: a script, a module or a function, run as Python would run it."""

from __future__ import annotations

import ast
import importlib
import importlib.machinery
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from harness.core.errors import SubjectError
from harness.training.config_files import SUFFIXES, replace_on_opening
from harness.training.literals import replaced


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


PARSERS = re.compile(r"\b(argparse|ArgumentParser|click|typer|fire|HfArgumentParser|tyro|hydra)\b")


def reads_arguments_itself(files: Sequence[Path]) -> bool:
    """Return True if a program reads `sys.argv` without a parser that is known."""
    texts = [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return any("sys.argv" in text for text in texts) and not any(PARSERS.search(text) for text in texts)


def top_level_names(path: Path) -> list[str]:
    """Return the names that a script assigns at its top level. Raises `SubjectError` if it cannot be parsed."""
    assigned = (node.targets for node in _parse(path).body if isinstance(node, ast.Assign))
    return [target.id for targets in assigned for target in targets if isinstance(target, ast.Name)]


Replaced = Mapping[str, Sequence[tuple[int, int, Any]]]
"""File -> line, column and value of each literal that is replaced."""


def compiled(path: Path, values: Sequence[tuple[int, int, Any]]) -> CodeType:
    """Return the code of a script, with these literals replaced; the line numbers stay."""
    tree = replaced(_parse(path), {(line, column): value for line, column, value in values})
    return compile(tree, str(path), "exec", dont_inherit=True)


class _ReplacingLoader(importlib.machinery.SourceFileLoader):
    """Loads a module of the project with some of its literals replaced."""

    def __init__(self, name: str, path: str, values: Sequence[tuple[int, int, Any]]) -> None:
        super().__init__(name, path)
        self._values = values

    def get_code(self, fullname: str) -> CodeType:
        """Return the code of the source, not that of a cached file."""
        return compiled(Path(self.path), self._values)


class _ReplacingFinder:
    """Finds the modules in whose files literals are replaced."""

    def __init__(self, values: Replaced) -> None:
        self.values = values

    def find_spec(self, name: str, path: Sequence[str] | None, target: Any = None) -> Any:
        """Return the module's spec with a loader that replaces; None for every other module."""
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        values = self.values.get(os.path.realpath(spec.origin)) if spec is not None and spec.origin else None
        if spec is None or spec.origin is None or not values:
            return None
        spec.loader = _ReplacingLoader(name, spec.origin, values)
        return spec


def run_as_main(source: ProgramSource, arguments: Sequence[str], values: Replaced) -> None:
    """Run a program in this process as `python train.py ARGUMENTS` or `python -m pkg.module ARGUMENTS` would.

    Literals of its files are replaced by `values`.

    The module `__main__` stays, so that what the program has defined can be used after it ended.
    """
    path = source.find(Path.cwd())
    sys.argv[:] = [source.target if source.is_script else str(path), *arguments]
    sys.path.insert(0, str(path.parent) if source.is_script else os.getcwd())
    sys.meta_path.insert(0, _ReplacingFinder(values))
    replace_on_opening({file: each for file, each in values.items() if Path(file).suffix in SUFFIXES})
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
    exec(compiled(path, values.get(str(path), ())), main.__dict__)  # the program itself


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
