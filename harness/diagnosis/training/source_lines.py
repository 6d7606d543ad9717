"""Lines of a program's source that no event of a run shows: where the learning rate is computed, where it ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.error_text import display_path

# Words of a cause about the learning rate, and of the lines that it may be about.
ABOUT = (
    ("warm-up", re.compile("warm")),
    ("minimum", re.compile("min|final|floor")),
    ("cos", re.compile(r"\bcos\b|cosine")),
    ("linear", re.compile("decay|ratio|progress|frac")),
)
OF_STEPS = ("micro-batches", "early", "late", "group")  # causes that are about where the function is called
MOST_ASSIGNMENTS = 3  # of names that are followed back


@dataclass(frozen=True)
class Source:
    """The source of a program: its files, and what it calls its number of steps."""

    files: Sequence[Path] = ()
    names_of_steps: Collection[str] = ()


@dataclass(frozen=True)
class _Module:
    file: Path
    tree: ast.Module
    lines: list[str]

    def shown(self, number: int) -> str:
        """Return a line as `train.py:31: source`."""
        return f"{display_path(str(self.file))}:{number}: {self.lines[number - 1].strip()}"

    def code(self) -> list[int]:
        """Return the numbers of the lines that have a part of a statement other than an import or a docstring."""
        numbers: set[int] = set()
        for node in ast.walk(self.tree):
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            if isinstance(node, ast.stmt) and not docstring and not isinstance(node, ast.Import | ast.ImportFrom):
                simple = not hasattr(node, "body")
                numbers |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1)) if simple else {node.lineno}
        return sorted(numbers)

    def functions(self, name: str) -> Iterator[ast.FunctionDef]:
        """Yield the functions and methods of a name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                yield node


def rate_line(files: Sequence[Path], cause: str) -> str:
    """Return the line, as `train.py:31: source`, that a cause about the learning rate is about; "" if none is found.

    The rate is assigned to `group["lr"]`, or a scheduler of torch computes it. Where a function of the program does,
    the line is the one in it that has a word of the cause; a cause about steps is about where it is called.
    """
    modules = _parsed(files)
    if "horizon of" in cause and (line := _assigned(modules, r"(decay|max|total|num|lr)\w*(iters|steps)$")):
        return line
    of_steps = any(word in cause for word in OF_STEPS)
    for module in modules:
        for value, number in _assigned_rates(module.tree):
            behind = None if of_steps else _function_behind(value, number, module, modules)
            return _line_in(*behind, cause) if behind else module.shown(number)
    for module in modules:
        for node in ast.walk(module.tree):
            if of_steps and isinstance(node, ast.Call) and re.search(r"sched\w*\.step$", ast.unparse(node.func)):
                return module.shown(node.lineno)
            if not of_steps and isinstance(node, ast.Call) and _name_of(node.func).endswith("LR"):
                names = [_name_of(each) for each in (*node.args, *(keyword.value for keyword in node.keywords))]
                found = next(((each, f) for name in names for each in modules for f in each.functions(name)), None)
                return _line_in(*found, cause) if found else module.shown(node.lineno)
    return _assigned(modules, r"^(lr|learning_rate)$")


def _assigned(modules: Sequence[_Module], pattern: str) -> str:
    """Return the line that assigns a computed value to a name; "" if there is none."""
    for module in modules:
        assigned = (node for node in ast.walk(module.tree) if isinstance(node, ast.Assign))
        for node in assigned:
            named = any(re.search(pattern, _name_of(target)) for target in node.targets)
            if named and not isinstance(node.value, ast.Constant):
                return module.shown(node.lineno)
    return ""


def line_that_counts(files: Sequence[Path], names: Collection[str]) -> str:
    """Return the line that compares with a setting of one of these names, or makes a range of it; "" if none does."""
    for module in _parsed(files):
        for node in ast.walk(module.tree):
            ranged = isinstance(node, ast.Call) and _name_of(node.func) in ("range", "trange")
            if (
                isinstance(node, ast.expr)
                and (ranged or isinstance(node, ast.Compare))
                and set(_names(node)) & set(names)
            ):
                return module.shown(node.lineno)
    return ""


def line_like(files: Sequence[Path], pattern: str, near: str = "") -> str:
    """Return the line of code that a pattern matches and that is nearest to the line `near`; "" if none matches.

    A line of another file than `near`'s is taken only if its own has none. Comments and strings that stand alone do
    not count.
    """
    file, _, rest = near.partition(":")
    at = int(rest.partition(":")[0]) if rest else 0
    found: list[tuple[bool, int, str]] = []
    for module in _parsed(files):
        own = display_path(str(module.file)) == file
        for number in module.code():
            if re.search(pattern, module.lines[number - 1].split("#")[0]):
                found.append((not own, abs(number - at) if own else number, module.shown(number)))
    return min(found, default=(False, 0, ""))[2]


def line_within(files: Sequence[Path], line: str, pattern: str) -> str:
    """Return the last line that a pattern matches in the function that begins at a line, or the line itself."""
    file, _, rest = line.partition(":")
    number = int(rest.partition(":")[0]) if rest else 0
    for module in _parsed(files):
        for node in ast.walk(module.tree) if display_path(str(module.file)) == file else ():
            if isinstance(node, ast.FunctionDef) and number in (
                node.lineno,
                *(each.lineno for each in node.decorator_list),
            ):
                own = [n for n in module.code() if node.lineno < n <= (node.end_lineno or 0)]
                found = [n for n in own if re.search(pattern, module.lines[n - 1].split("#")[0])]
                return module.shown(found[-1]) if found else line
    return line


def function_line(files: Sequence[Path], line: str) -> str:
    """Return the line that begins the innermost function around a line; the line itself if there is none."""
    file, _, rest = line.partition(":")
    number = int(rest.partition(":")[0]) if rest else 0
    for module in _parsed(files):
        if display_path(str(module.file)) == file:
            around = [
                node
                for node in ast.walk(module.tree)
                if isinstance(node, ast.FunctionDef) and node.lineno <= number <= (node.end_lineno or 0)
            ]
            if around:
                return module.shown(max(node.lineno for node in around))
    return line


def _parsed(files: Sequence[Path]) -> list[_Module]:
    """Return the modules that can be parsed."""
    found = []
    for file in files:
        try:
            text = file.read_text(encoding="utf-8")
            found.append(_Module(file, ast.parse(text), text.splitlines()))
        except (OSError, ValueError, SyntaxError):
            continue
    return found


def _name_of(node: ast.AST) -> str:
    """Return the last part of a name or an attribute; "" for another expression."""
    return node.attr if isinstance(node, ast.Attribute) else str(getattr(node, "id", ""))


def _names(node: ast.AST) -> Iterator[str]:
    """Yield the names and attributes in an expression."""
    for each in ast.walk(node):
        if isinstance(each, ast.Name):
            yield each.id
        elif isinstance(each, ast.Attribute):
            yield each.attr


def _assigned_rates(tree: ast.Module) -> Iterator[tuple[ast.expr, int]]:
    """Yield what is assigned to `something["lr"]`, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            for target in node.targets:
                key = target.slice if isinstance(target, ast.Subscript) else None
                if isinstance(key, ast.Constant) and key.value == "lr":
                    yield node.value, node.lineno


def _function_behind(
    value: ast.expr, number: int, module: _Module, modules: Sequence[_Module]
) -> tuple[_Module, ast.FunctionDef] | None:
    """Return the function of the program whose result is assigned; the assignments of a name are followed back."""
    for _ in range(MOST_ASSIGNMENTS):
        calls = [node.func for node in ast.walk(value) if isinstance(node, ast.Call)]
        found = next(
            (
                (each, f)
                for func in calls
                for name in [_name_of(func)]
                for each in modules
                for f in each.functions(name)
            ),
            None,
        )
        if found is not None:
            return found
        used = set(_names(value))
        before = [node for node in _assignments(module.tree, used) if node.lineno < number]
        if not before:
            return None
        last = max(before, key=lambda node: node.lineno)
        value, number = last.value, last.lineno
    return None


def _assignments(tree: ast.Module, names: Collection[str]) -> Iterator[ast.Assign]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and any(getattr(target, "id", "") in names for target in node.targets):
            yield node


def _line_in(module: _Module, function: ast.FunctionDef, cause: str) -> str:
    """Return the line of a function that a cause is about, or its first one."""
    numbers = [n for n in module.code() if function.lineno < n <= (function.end_lineno or function.lineno)]
    for word, pattern in ABOUT:
        if word in cause:
            found = [number for number in numbers if pattern.search(module.lines[number - 1].split("#")[0].lower())]
            if found:
                return module.shown(found[0])
    return module.shown(function.lineno)
