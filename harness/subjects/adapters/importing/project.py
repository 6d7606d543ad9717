"""A subject's module with the modules of its project that it imports: imported once, and again with other constants."""

from __future__ import annotations

import contextlib
import importlib
import sys
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from harness.core.error_text import error_location
from harness.core.errors import SubjectError
from harness.core.shipped_packages import prefer_user_modules
from harness.subjects.adapters.importing.constants import Number, constants
from harness.subjects.adapters.importing.import_roots import forget_other_projects, module_name
from harness.subjects.adapters.importing.module_loader import ImportNotes, ModuleLoader, UserModules
from harness.subjects.adapters.importing.renamed_modules import RenamedModules
from harness.subjects.adapters.importing.top_level import TopLevel


class Project:
    """The module that a spec names, imported. Raises SubjectError, in one line, if it does not import.

    Args:
        where: the file, or the dotted name of a module.
        name: the name that is wanted of it.
    """

    def __init__(self, where: str, name: str) -> None:
        self.where, self.wanted = where, name.split(".")[0]
        self.notes = ImportNotes()
        self._variants: dict[tuple[tuple[str, Number], ...], ModuleType] = {}
        self._home: weakref.WeakKeyDictionary[type, ModuleType] = weakref.WeakKeyDictionary()
        if where.endswith(".py"):
            path = Path(where).resolve()
            self.name, root = module_name(path)
            prefer_user_modules(root)
            sys.path.insert(0, str(root))  # as with `python FILE.py`, the file's own folder comes first
            if root != path.parent:
                forget_other_projects(self.name.split(".")[0])
            self.path: Path | None = path
        else:
            self.name, self.path = where, None
            if "" not in sys.path and str(Path.cwd()) not in sys.path:
                sys.path.insert(0, str(Path.cwd()))  # the `pytest` command, unlike `python -m pytest`, does not add it
        self.executed: list[str] = []
        self.module = self._import({}, self.notes)

    def constants(self) -> dict[str, Number]:
        """Return the named numbers at the top level of the project's modules; see `constants`."""
        for name in dict.fromkeys([self.name, *self.executed]):
            module = sys.modules.get(name)
            file = getattr(module, "__file__", None)
            if name not in self.executed and file:  # imported before, by somebody else
                with contextlib.suppress(SyntaxError, OSError, ValueError):
                    self.notes.constants |= constants(TopLevel(Path(file).read_text(encoding="utf-8"), file))
        return self.notes.constants

    def variant(self, values: Mapping[str, Number]) -> ModuleType:
        """Return the module as it is with other constants, its project's modules too; the one imported if with none."""
        key = tuple(sorted(values.items()))
        if not key:
            return self.module
        if key not in self._variants:
            aside = {name: sys.modules.pop(name) for name in self._own_modules()}
            try:
                self._variants[key] = self._import(values, ImportNotes())
            finally:
                for name in self._own_modules():  # a module of the variant must not stay beside those of the original
                    del sys.modules[name]
                sys.modules.update(aside)
        return self._variants[key]

    def _own_modules(self) -> list[str]:
        """Return the imported modules of the project: those that were executed, and all of the same packages."""
        own = {*self.executed, self.name}
        packages = {name.split(".")[0] for name in own} - {"harness"}
        return [name for name in sys.modules if name in own or name.split(".")[0] in packages]

    def _import(self, values: Mapping[str, Number], notes: ImportNotes) -> ModuleType:
        finder, renamed = UserModules(notes, values), RenamedModules()
        finder.wanted[self.name] = {self.wanted}
        arguments = sys.argv
        sys.meta_path.insert(0, finder)
        sys.meta_path.append(renamed)
        try:
            sys.argv = [str(self.path or self.name)]
            return (
                self._import_own_file(finder)
                if self.name.startswith("_subject_")
                else importlib.import_module(self.name)
            )
        except (KeyboardInterrupt, SubjectError):
            raise
        except BaseException as error:
            raise SubjectError(_did_not_import(self.where, error)) from error
        finally:
            sys.argv = arguments
            sys.meta_path.remove(finder)
            sys.meta_path.remove(renamed)
            renamed.forget()
            self.executed = list(dict.fromkeys([*self.executed, *finder.executed]))

    def _import_own_file(self, finder: UserModules) -> ModuleType:
        loader = ModuleLoader(finder, self.name, str(self.path))
        spec = importlib.util.spec_from_file_location(self.name, self.path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[self.name] = module  # dataclasses and copy look up the module here
        try:
            loader.exec_module(module)
        except BaseException:
            del sys.modules[self.name]
            raise
        return module


def _did_not_import(name: str, error: BaseException) -> str:
    if isinstance(error, SyntaxError):
        place = f"{error.filename}:{error.lineno}"
    else:
        place = error_location(error).removesuffix(" in <module>")
    what = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return f"{name} does not import: {what}{f' ({place})' if place else ''}"
