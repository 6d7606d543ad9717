"""Copies of a program's project, in which its rehearsals run: what they write or overwrite is not the user's.

What a program writes to an absolute path, or into a file that is too large to be copied, is the user's all the same.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

ROOT_MARKS = (".git", "pyproject.toml", "setup.py", "setup.cfg")
LEFT_OUT = frozenset(
    (
        ".git",
        ".hg",
        ".venv",
        "venv",
        "env",
        "node_modules",
        "__pycache__",
        "wandb",
        "site-packages",
        ".ipynb_checkpoints",
    )
)
LARGEST = 16 * 2**20  # bytes of a file that is copied; a larger one, such as a token file, is linked
MOST_FILES = 3_000  # of a project that is copied; a program in a larger one runs in its own folder


class ProjectCopies:
    """The copies of the project that a program belongs to, by name, each made when it is asked for.

    `copied=False`, and a project with too many files, run in the program's own folder.
    """

    def __init__(self, cwd: Path, folder: Path, *, copied: bool) -> None:
        self.cwd, self.folder = cwd, folder
        self.root: Path | None = project_root(cwd) if copied else None

    def cwd_of(self, name: str) -> Path:
        """Return the program's folder in a copy."""
        if self.root is None:
            return self.cwd
        copy = self._path(name)
        if not copy.exists() and not copy_project(self.root, copy):
            self.root = None
            return self.cwd
        return copy / self.cwd.relative_to(self.root)

    def with_copies(self, by_file: Mapping[str, Any], name: str) -> dict[str, Any]:
        """Return a mapping by file for the files of a copy as well: modules may be imported from both."""
        root = self.root
        if root is None:
            return dict(by_file)
        inside = {file: value for file, value in by_file.items() if Path(file).is_relative_to(root)}
        copies = {os.path.realpath(self._path(name) / Path(file).relative_to(root)): v for file, v in inside.items()}
        return {**by_file, **copies}

    def _path(self, name: str) -> Path:
        return self.folder / f"project-{name}"


def project_root(folder: Path) -> Path:
    """Return the nearest folder, this one or above, that is the root of a project; the folder itself if none is."""
    home = Path.home()
    for each in (folder, *folder.parents):
        if each in (home, Path(each.anchor)):
            break
        if any((each / mark).exists() for mark in ROOT_MARKS):
            return each
    return folder


def copy_project(root: Path, into: Path) -> bool:
    """Copy a project into a folder that does not exist yet. Return False, copying nothing, if it has too many files."""
    files: list[Path] = []
    for path in _files(root):
        files.append(path)
        if len(files) > MOST_FILES:
            return False
    into.mkdir(parents=True)
    for path in files:
        copy_or_link(path, into / path.relative_to(root))
    return True


def copy_or_link(path: Path, target: Path) -> None:
    """Copy a file; link it if it is large, or a link. One that is gone, or may not be read, is left out."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        if path.is_symlink() or path.stat().st_size > LARGEST:
            target.symlink_to(path.resolve())
        else:
            shutil.copy2(path, target)
            target.chmod(0o644 | path.stat().st_mode & 0o111)
    except OSError:  # the program will say so if it needs it
        return


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files of a folder and those beneath it; a link to a folder is one of them."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return
    for path in inside:
        if path.name in LEFT_OUT:
            continue
        if path.is_dir() and not path.is_symlink():
            yield from _files(path)
        elif path.is_file() or path.is_symlink():
            yield path
