"""The top level of a module, statement by statement: what defines, what acts, and what a name needs."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from harness.subjects.adapters.construction.setting_names import SIZES, quantity_of
from harness.subjects.adapters.importing.absent_devices import AbsentDevices
from harness.subjects.adapters.importing.script_constants import is_main, script_constants
from harness.subjects.adapters.importing.statement_words import (
    CHEAP_BUILTINS,
    CHEAP_NAMES,
    CHEAP_ROOTS,
    CONFIG_ENDS,
    READS,
    REMOTE,
)

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)


@dataclass(frozen=True)
class Statement:
    """A statement of the top level: the names that it binds or changes, those that it needs, and if it acts."""

    index: int  # in the body of the module
    node: ast.stmt
    binds: frozenset[str]
    needs: frozenset[str]
    acts: bool

    @property
    def text(self) -> str:
        """The statement's line and its beginning, as `line 12: model = GPT(config)`."""
        first = next(line for line in ast.unparse(self.node).splitlines() if not line.startswith("@"))
        return f"line {self.node.lineno}: {first if len(first) <= 48 else first[:45] + '...'}"


class TopLevel:
    """The top level of a module's source. Raises SyntaxError.

    `changes` says how `tree` differs from the source: absent devices are the CPU, and constants that the definitions
    need are taken from `if __name__ == "__main__"`.
    """

    def __init__(self, source: str, file: str) -> None:
        self.tree = ast.parse(source, file)
        self._tables = list(_scopes(symtable.symtable(source, file, "exec")))
        self.changes = [*self._replace_devices(), *self._take_script_constants()]

    def _replace_devices(self) -> list[str]:
        devices = AbsentDevices()
        devices.visit(self.tree)
        return [
            f"this machine has no {device}, which line {line} asks for: the CPU is in its place"
            for device, line in devices.found.items()
        ]

    def _take_script_constants(self) -> list[str]:
        body = self.tree.body
        at = next((number for number, node in enumerate(body) if is_main(node)), None)
        if at is None:
            return []
        bound = frozenset(name for node in body if not is_main(node) for name in _bound(node))
        needed = frozenset(name for _, names in self._tables for name in names)
        taken = script_constants(body, bound, needed, self._calls_action)
        body[at:at] = taken
        names = ", ".join(sorted(name for node in taken for name in _bound(node)))
        return [f"line {body[at].lineno} and below: of the script, only {names} are taken"] if taken else []

    @cached_property
    def statements(self) -> list[Statement]:
        """The statements in order, each with what it binds and needs; `if __name__ == "__main__"` is none of them."""
        nodes = self.tree.body
        imported = frozenset(name for node in nodes for name in _imported(node))
        return [
            Statement(index, node, self._binds(node) - imported | _imported(node), self._needs(node), self._acts(node))
            for index, node in enumerate(nodes)
            if not is_main(node)
        ]

    def _binds(self, node: ast.stmt) -> frozenset[str]:
        """Return what a statement binds or changes. What acts on a value, as training does, is not needed for it."""
        changes = not (isinstance(node, ast.Expr | ast.For | ast.While) and self._acts(node))
        return _bound(node, changes=changes)

    def is_remote(self, statement: Statement) -> bool:
        """Return True if a statement would fetch something from a network."""
        calls = [n for n in _outside_functions(statement.node) if isinstance(n, ast.Call)]
        return any(_dotted(call.func)[-1] in REMOTE for call in calls if _dotted(call.func)[0] != "os")

    @cached_property
    def names(self) -> frozenset[str]:
        """Every name that the top level binds."""
        return frozenset(name for statement in self.statements for name in statement.binds)

    def needed(self, names: Iterable[str]) -> list[Statement]:
        """Return the statements that `names` need, transitively, in order. A size needs nothing: it is replaced."""
        waiting, seen, found = list(names), set[str](), set[int]()
        while waiting:
            name = waiting.pop()
            if name in seen:
                continue
            seen.add(name)
            for number, statement in enumerate(self.statements):
                if name not in statement.binds or number in found:
                    continue
                found.add(number)
                if not (isinstance(statement.node, ast.Assign | ast.AnnAssign) and self.is_computed_size(statement)):
                    waiting += statement.needs
        return [self.statements[number] for number in sorted(found)]

    def is_computed_size(self, statement: Statement) -> bool:
        """Return True for a size that is computed from what acts: `vocab_size = len(characters)`."""
        return (
            isinstance(statement.node, ast.Assign | ast.AnnAssign)
            and len(statement.binds) == 1
            and quantity_of(next(iter(statement.binds)), ()) in SIZES
            and (statement.acts or self._depends_on_action(statement.needs))
        )

    def _depends_on_action(self, needs: Iterable[str], seen: frozenset[str] = frozenset()) -> bool:
        for name in frozenset(needs) - seen:
            for other in self.statements:
                if name not in other.binds or isinstance(other.node, DEFINES):
                    continue
                if other.acts or self._depends_on_action(other.needs, seen | {name}):
                    return True
        return False

    def _needs(self, node: ast.stmt) -> frozenset[str]:
        loaded = {n.id for n in _outside_functions(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
        first, last = node.lineno, node.end_lineno or node.lineno
        first = min([first, *(d.lineno for d in getattr(node, "decorator_list", ()))])
        for line, names in self._tables:
            if first <= line <= last:
                loaded |= names
        return frozenset(loaded)

    def _acts(self, node: ast.stmt) -> bool:
        if isinstance(node, (*DEFINES, ast.Pass, ast.Raise, ast.Assert, ast.Global, ast.Delete)):
            return False
        if isinstance(node, ast.With | ast.AsyncWith):
            return True
        if isinstance(node, ast.If | ast.Try) and not any(isinstance(n, ast.For | ast.While) for n in ast.walk(node)):
            inner = [child for part in ast.iter_child_nodes(node) for child in _statements_in(part)]
            test = [node.test] if isinstance(node, ast.If) else []
            return any(map(self._acts, inner)) or any(map(self._calls_action, test))
        return self._calls_action(node)

    def _calls_action(self, node: ast.AST) -> bool:
        return any(isinstance(n, ast.Call) and not self._is_cheap(n) for n in _outside_functions(node))

    def _is_cheap(self, call: ast.Call) -> bool:
        words = _dotted(call.func)
        last = words[-1] if words else ""
        if last in READS | REMOTE and words[:2] != ["os", "environ"]:
            return False
        if len(words) > 1:
            root = words[0]
            return root in CHEAP_ROOTS or root == "" or self._is_plain_value(root)
        return (
            last in CHEAP_BUILTINS | CHEAP_NAMES | self._cheap_imports
            or last.lower().endswith(CONFIG_ENDS)
            or any(isinstance(s, ast.ClassDef) and s.name == last and not self.is_module(s) for s in self.tree.body)
        )

    @cached_property
    def _cheap_imports(self) -> frozenset[str]:
        """The names imported from packages whose functions are cheap: `ColwiseParallel`, as `torch.nn.Linear` is."""
        imports = [node for node in self.tree.body if isinstance(node, ast.ImportFrom) and not node.level]
        cheap = [node for node in imports if (node.module or "").split(".")[0] in CHEAP_ROOTS]
        return frozenset(
            alias.asname or alias.name for node in cheap for alias in node.names if alias.name not in READS | REMOTE
        )

    def _is_plain_value(self, name: str) -> bool:
        """Return True if a name's first value is a literal, or what a cheap call returns."""
        for node in self.tree.body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and name in _bound(node) and node.value is not None:
                calls = [n for n in _outside_functions(node.value) if isinstance(n, ast.Call)]
                return all(_dotted(n.func)[:1] != [name] and self._is_cheap(n) for n in calls)
        return False

    def is_module(self, node: ast.ClassDef) -> bool:
        """Return True if a class has a forward method or is called a Module by its bases."""
        bases = [_dotted(base)[-1:] for base in node.bases]
        local = [s for s in self.tree.body if isinstance(s, ast.ClassDef) and [s.name] in bases and s is not node]
        has_forward = any(isinstance(s, ast.FunctionDef) and s.name == "forward" for s in node.body)
        named = any("Module" in word for base in bases for word in base)
        return has_forward or named or any(map(self.is_module, local))


def _scopes(table: symtable.SymbolTable) -> Iterator[tuple[int, frozenset[str]]]:
    """Yield the line of each function and class, and the names of the module that it reads."""
    for child in table.get_children():
        yield child.get_lineno(), frozenset(s.get_name() for s in child.get_symbols() if s.is_global())
        yield from _scopes(child)


def _outside_functions(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the node and what is below it, but for the bodies of functions, which do not run."""
    yield node
    for name, value in ast.iter_fields(node):
        if isinstance(node, SCOPES) and name == "body":
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _outside_functions(child)


def _statements_in(node: ast.AST) -> list[ast.stmt]:
    if isinstance(node, ast.stmt):
        return [node]
    return [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]


def _imported(node: ast.stmt) -> frozenset[str]:
    """Return the names that the import statements in a statement bind."""
    found = [child for child in _outside_functions(node) if isinstance(child, ast.Import | ast.ImportFrom)]
    return frozenset(alias.asname or alias.name.split(".")[0] for child in found for alias in child.names)


def _bound(node: ast.stmt, *, changes: bool = True) -> frozenset[str]:
    """Return the names that a statement binds, and with `changes` those whose value it changes: x.a = 1, x.add(1)."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return frozenset((node.name,))
    found = set[str]()
    for child in _outside_functions(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            found.add(child.id)
        elif changes and isinstance(child, ast.Attribute | ast.Subscript) and isinstance(child.ctx, ast.Store):
            found |= set(_dotted(child)[:1])
        elif isinstance(child, ast.FunctionDef | ast.ClassDef):
            found.add(child.name)
        elif changes and isinstance(child, ast.Expr) and isinstance(child.value, ast.Call):
            words = _dotted(child.value.func)
            found |= set(words[:1]) if len(words) > 1 else set()
    return frozenset(found - {""}) | _imported(node)


def _dotted(node: ast.AST) -> list[str]:
    """Return the words of a dotted name, calls and subscripts left out; a first word "" for what is no name."""
    if isinstance(node, ast.Name):
        return [node.id]
    if isinstance(node, ast.Attribute):
        return [*_dotted(node.value), node.attr]
    if isinstance(node, ast.Subscript):
        return _dotted(node.value)
    if isinstance(node, ast.Call):
        return _dotted(node.func)
    return [""]
