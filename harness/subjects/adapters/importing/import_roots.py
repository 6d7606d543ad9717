"""The folders from which a project's own imports are found: src/, folders above, packages without __init__.py."""

from __future__ import annotations

import ast
import importlib.machinery
import sys
from collections.abc import Iterator
from pathlib import Path

from harness.core.error_text import is_user_file
from harness.core.shipped_packages import HOME

ABOVE = 6  # folders above a file in which its project may begin


def module_name(path: Path) -> tuple[str, Path]:
    """Return the name under which a file is imported, and the folder that has to be on sys.path.

    A file of a package, or one with `from .x import y`, has its package's name, whether or not there is an __init__.py.
    """
    root, words = path.parent, [] if path.stem == "__init__" else [path.stem]
    levels = _relative_levels(path)
    while (root / "__init__.py").is_file() or levels > 0:
        words.insert(0, root.name)
        root = root.parent
        levels -= 1
    return (".".join(words), root) if root != path.parent else (f"_subject_{path.stem}", root)


def _relative_levels(path: Path) -> int:
    """Return the most folders that relative imports go up from `path`'s folder, in it or in what it imports so."""
    most, waiting, seen = 0, [(path, 0)], set[Path]()
    while waiting:
        file, depth = waiting.pop()
        if file in seen or not file.is_file():
            continue
        seen.add(file)
        for node in _imports(file):
            if isinstance(node, ast.ImportFrom) and node.level:
                up = node.level - depth
                most = max(most, up)
                folder = file.parents[node.level - 1]
                for words in ([node.module or ""], *([node.module or "", a.name] for a in node.names)):
                    target = folder.joinpath(*".".join(filter(None, words)).split(".")).with_suffix(".py")
                    below = len(target.parent.relative_to(folder).parts)
                    waiting.append((target, depth - node.level + 1 + below))
    return most


def _imports(file: Path) -> list[ast.Import | ast.ImportFrom]:
    try:
        tree = ast.parse(file.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError, OSError):
        return []  # importing it reports the error
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def find_own_imports(tree: ast.Module, file: Path) -> None:
    """Put the folders on sys.path from which the absolute imports of `file` are found in its own project.

    Modules of another project that have the same names are removed from sys.modules.
    """
    for name in _absolute(tree):
        first = name.split(".")[0]
        if first in sys.stdlib_module_names or first == "harness":
            continue
        root = _root_of(name, file.parent)
        if root is not None and str(root) not in sys.path:
            sys.path.insert(0, str(root))
        forget_other_projects(first)


def forget_other_projects(name: str) -> None:
    """Remove a top-level module of a user's from sys.modules if sys.path now has another under its name."""
    loaded = sys.modules.get(name)
    if loaded is None or not (place := _place(loaded)) or not is_user_file(place) or Path(place).is_relative_to(HOME):
        return
    spec = importlib.machinery.PathFinder.find_spec(name)
    found = "" if spec is None else str(spec.origin or next(iter(spec.submodule_search_locations or ()), ""))
    if found and Path(found).resolve() != Path(place).resolve():
        for key in [key for key in sys.modules if key == name or key.startswith(f"{name}.")]:
            del sys.modules[key]


def _place(module: object) -> str:
    return str(getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", ())), ""))


def _absolute(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module


def _root_of(name: str, folder: Path) -> Path | None:
    """Return the nearest folder, at or above `folder`, that has the module; None if none has, or it is installed."""
    words = name.split(".")
    installed = _is_installed(words[0])
    for above in [folder, *folder.parents][: ABOVE + 1]:
        for root in (above, above / "src"):
            place = root.joinpath(*words)
            package = (root / words[0] / "__init__.py").is_file() or (root / f"{words[0]}.py").is_file()
            there = place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()
            if (there and (package or not installed)) or (not installed and place.is_dir() and any(place.glob("*.py"))):
                return root
    return None


def _is_installed(name: str) -> bool:
    spec = importlib.machinery.PathFinder.find_spec(name)
    place = spec and (spec.origin or next(iter(spec.submodule_search_locations or ()), None))
    return bool(place) and not is_user_file(str(place))
