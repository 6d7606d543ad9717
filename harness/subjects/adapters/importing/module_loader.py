"""Execute a user's module: as it is, or its definitions alone where the top level acts or does not run."""

from __future__ import annotations
import __future__

import ast
import importlib.abc
import importlib.machinery
import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

from harness.core.error_text import display_path, is_user_file
from harness.core.errors import SubjectError
from harness.core.limits import TooLong
from harness.core.process_exit import ProcessExit
from harness.subjects.adapters.construction.setting_names import quantity_of
from harness.subjects.adapters.construction.stand_in import StandIn
from harness.subjects.adapters.importing.constants import COMPUTED, Number, constants, with_constants
from harness.subjects.adapters.importing.import_roots import find_own_imports
from harness.subjects.adapters.importing.script_constants import PUBLISHED
from harness.subjects.adapters.importing.stub_modules import bind_stubs, missing_package
from harness.subjects.adapters.importing.top_level import Statement, TopLevel


@dataclass
class ImportNotes:
    """What was done to import a subject other than what Python would: one line each, without repetitions."""

    left_out: dict[str, list[str]] = field(default_factory=dict)  # file -> statements that were not run
    missing: dict[str, list[str]] = field(default_factory=dict)  # package -> the lines that import it
    replaced: list[str] = field(default_factory=list)
    constants: dict[str, Number] = field(default_factory=dict)  # the named numbers of all modules

    def lines(self) -> list[str]:
        """Return the notes as sentences."""
        found = []
        for file, statements in self.left_out.items():
            shown = "; ".join(statements[:6]) + (f"; and {len(statements) - 6} more" if statements[6:] else "")
            found.append(f"{file} does more than define: its definitions were taken, and these were not run: {shown}")
        if self.missing:
            packages = ", ".join(f"{package} ({', '.join(places)})" for package, places in self.missing.items())
            found.append(f"not installed: {packages}; stubs are in their place, and raise an error where they are used")
        return [*found, *dict.fromkeys(self.replaced)]


class UserModules(importlib.abc.MetaPathFinder):
    """The first finder on sys.meta_path while a subject is imported: it has a loader of its own for users' modules."""

    def __init__(self, notes: ImportNotes, values: Mapping[str, Number]) -> None:
        self.notes, self.values = notes, values
        self.wanted: dict[str, set[str]] = {}  # module -> names that others import from it
        self.executed: list[str] = []

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a user's module's spec, with this finder's loader; None for every other module."""
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or spec.origin is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        if not is_user_file(spec.origin):
            return None
        spec.loader = ModuleLoader(self, fullname, spec.origin)
        return spec


class ModuleLoader(importlib.machinery.SourceFileLoader):
    """Executes one module of a user."""

    def __init__(self, finder: UserModules, fullname: str, path: str) -> None:
        super().__init__(fullname, path)
        self.finder = finder

    def exec_module(self, module: ModuleType) -> None:
        """Execute the module; the definitions alone, and what they need, if the rest acts or fails."""
        top = TopLevel(self.get_source(self.name) or "", self.path)
        find_own_imports(top.tree, Path(self.path))
        self._note_wanted(top.tree, module)
        self.finder.executed.append(self.name)
        self.finder.notes.replaced += [f"{display_path(self.path)}: {change}" for change in top.changes]
        found = constants(top)
        self.finder.notes.constants |= found
        wanted = self.finder.wanted.get(self.name, set()) & top.names
        needed = top.needed(wanted)
        computed = {word: PUBLISHED[str(quantity_of(word, ()))] for word, value in found.items() if value == COMPUTED}
        values = {word: self.finder.values[word] for word in found if word in self.finder.values}
        first: BaseException | None = None
        if not wanted or not (computed or any(s.acts and s not in needed for s in top.statements)):
            try:
                self._execute(module, with_constants(top, values) if values or top.changes else None)
                return
            except (SyntaxError, SubjectError, KeyboardInterrupt, TooLong, ProcessExit):
                raise
            except BaseException as error:  # SystemExit, too
                if not wanted and not missing_package(error):
                    raise
                first = error
        for name in [name for name in vars(module) if not name.startswith("__")]:
            del vars(module)[name]
        Definitions(module, top, needed, self.finder.notes, self.path).execute(
            with_constants(top, {**computed, **values}), first
        )

    def _execute(self, module: ModuleType, tree: ast.Module | None) -> None:
        if tree is None:
            super().exec_module(module)
        else:
            _run(tree.body, tree, self.path, module)

    def _note_wanted(self, tree: ast.Module, module: ModuleType) -> None:
        """Note which names this module uses of those that it imports."""
        package = module.__spec__.parent if module.__spec__ else ""
        aliases: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = (
                    importlib.util.resolve_name("." * node.level + (node.module or ""), package) if node.level else ""
                )
                for alias in node.names:
                    self.finder.wanted.setdefault(base or node.module or "", set()).add(alias.name)
                    aliases[alias.asname or alias.name] = f"{base or node.module}.{alias.name}"
            elif isinstance(node, ast.Import):
                aliases |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
                self.finder.wanted.setdefault(aliases[node.value.id], set()).add(node.attr)


class Definitions:
    """Executes the definitions of a module and what the wanted names need; notes what is left out and replaced."""

    def __init__(
        self, module: ModuleType, top: TopLevel, needed: list[Statement], notes: ImportNotes, path: str
    ) -> None:
        self.module, self.top, self.needed, self.notes, self.path = module, top, needed, notes, path

    def execute(self, tree: ast.Module, first: BaseException | None) -> None:
        """Execute the statements of `tree`, one by one. Raises `first`, or its own error, if a needed one fails."""
        for statement in self.top.statements:
            node = tree.body[statement.index]
            is_needed = statement in self.needed
            is_size = self.top.is_computed_size(statement)
            if isinstance(node, ast.Raise | ast.Assert) or (statement.acts and not is_needed and not is_size):
                self._leave_out(statement)
            elif self.top.is_remote(statement) and is_needed and not is_size and self._replace(statement):
                continue
            else:
                try:
                    _run([node], tree, self.path, self.module)
                except (KeyboardInterrupt, TooLong, ProcessExit):
                    raise
                except BaseException as error:  # SystemExit, too: of a parser of arguments
                    if not self._recover(statement, error, is_needed=is_needed):
                        raise (first or error) from None

    def _recover(self, statement: Statement, error: BaseException, *, is_needed: bool) -> bool:
        """Do without a statement that failed. Return False if the wanted names need it as it is."""
        package = missing_package(error)
        if isinstance(statement.node, ast.Import | ast.ImportFrom) and package:
            place = f"{display_path(self.path)}:{statement.node.lineno}"
            bind_stubs(statement.node, vars(self.module), f"the package '{package}' is not installed; {place} needs it")
            self.notes.missing.setdefault(package, []).append(place)
            return True
        if not is_needed:
            self._leave_out(statement)
            return True
        return self._replace(statement)

    def _replace(self, statement: Statement) -> bool:
        """Bind what the statement would have assigned to a stand-in; False if it is no assignment to names."""
        if not isinstance(statement.node, ast.Assign | ast.AnnAssign | ast.With):
            return False
        for name in statement.binds:
            vars(self.module)[name] = StandIn(name)
        names = ", ".join(sorted(statement.binds))
        self.notes.replaced.append(f"{display_path(self.path)}: a stand-in is put for {names}: {statement.text}")
        return True

    def _leave_out(self, statement: Statement) -> None:
        self.notes.left_out.setdefault(display_path(self.path), []).append(statement.text)


def _run(body: list[ast.stmt], of: ast.Module, path: str, module: ModuleType) -> None:
    """Execute statements of a module in it, with the module's own `from __future__` imports, and not this file's."""
    flags = 0
    for node in of.body:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            for alias in node.names:
                flags |= getattr(__future__, alias.name).compiler_flag
    exec(compile(ast.Module(body, []), path, "exec", flags, dont_inherit=True), vars(module))
