"""Lines of a program's source that no event of a run shows: where the learning rate is computed, where it ends."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from harness.core.error_text import display_path

# Words of a cause about the learning rate, and of the lines that it may be about.
ABOUT = (
    ("warm-up", re.compile("warm")),
    ("minimum", re.compile(r"\bmin_|_min\b|minimum|final|floor|least")),
    ("cos", re.compile(r"\bcos\b|cosine")),
    ("linear", re.compile("decay|ratio|progress|frac")),
)
OF_STEPS = (
    "micro-batches",
    "early",
    "late",
    "group",
    "by one an epoch",
    "step of the run",
)  # causes that are about where the function is called
BESIDE = 4  # lines: a division so near a backward pass is that of its loss
MOST_ASSIGNMENTS = 3  # of names that are followed back


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

    def is_file_of(self, line: str) -> bool:
        """Return True if a line, `train.py:31: source`, is one of this module."""
        return display_path(str(self.file)) == line.partition(":")[0]

    def matches(self, pattern: str, number: int) -> bool:
        """Return True if a pattern matches the code of a line, without its comment."""
        return re.search(pattern, self.lines[number - 1].split("#")[0]) is not None

    def functions(self, name: str) -> Iterator[ast.FunctionDef]:
        """Yield the functions and methods of a name."""
        for node in ast.walk(self.tree):
            if isinstance(node, ast.FunctionDef) and node.name == name:
                yield node


class Source:
    """The source of a program. Its methods return a line as `train.py:31: source`, or "" if they find none.

    Args:
        files: The files that are searched; those that cannot be parsed are left out.
        names_of_steps: What the program calls its number of steps.
    """

    def __init__(self, files: Sequence[Path] = (), names_of_steps: Collection[str] = ()) -> None:
        self.files, self.names_of_steps = files, frozenset(names_of_steps)

    def of_the_rate(self, cause: str) -> str:
        """Return the line that a cause about the learning rate is about.

        The rate is assigned to `group["lr"]`, or a scheduler of torch computes it. Where a function of the program
        does, the line is the one in it that has a word of the cause; a cause about steps is about where it is called.
        """
        if "horizon of" in cause and (line := self._assigned(r"(decay|max|total|num|lr)\w*(iters|steps)$")):
            return line
        of_steps = any(word in cause for word in OF_STEPS)
        for module in self._modules:
            for value, number in _assigned_rates(module.tree):
                behind = None if of_steps else self._function_behind(value, number, module)
                return _line_in(*behind, cause) if behind else module.shown(number)
        for module in self._modules:
            for call in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call)):
                if of_steps and re.search(r"sched\w*\.step$", ast.unparse(call.func)):
                    return module.shown(call.lineno)
                if not of_steps and _name_of(call.func).endswith("LR"):
                    given = [*call.args, *(keyword.value for keyword in call.keywords)]
                    if "horizon of" in cause and any(isinstance(each, ast.Call) for each in given):
                        return module.shown(call.lineno)
                    found = self._function(
                        _name_of(each.func if isinstance(each, ast.Call) else each) for each in given
                    )
                    return _line_in(*found, cause) if found else module.shown(call.lineno)
        return self._assigned(r"^(lr|learning_rate)$")

    def of_the_number_of_steps(self) -> str:
        """Return the line that compares with the number of steps, or makes a range of it."""
        for module in self._modules:
            for node in (node for node in ast.walk(module.tree) if isinstance(node, ast.Call | ast.Compare)):
                counts = isinstance(node, ast.Compare) or _name_of(node.func) in ("range", "trange")
                if counts and self.names_of_steps & set(_names(node)):
                    return module.shown(node.lineno)
        return ""

    def of_the_divisor(self, near: str) -> str:
        """Return the line that computes what a loss beside the line `near` is divided by, or else that of the division.

        A divisor that is a constant is one of the settings: the division is the line then.
        """
        at = _number(near)
        for module in (module for module in self._modules if module.is_file_of(near)):
            beside = [each for each in _divisions(module.tree) if abs(each[0] - at) <= BESIDE]
            for number, divisor in sorted(beside, key=lambda each: abs(each[0] - at)):
                names = set(filter(None, [_name_of(divisor)]))
                own = [each for each in _assignments(module.tree, names) if each.lineno < number]
                computed = own and not isinstance(own[-1].value, ast.Constant)
                return module.shown(own[-1].lineno if computed else number)
        return ""

    def like(self, pattern: str, near: str = "") -> str:
        """Return the line of code that a pattern matches and that is nearest to the line `near`.

        A line of another file than `near`'s is taken only if its own has none. Comments and docstrings do not count.
        """
        at = _number(near)
        found: list[tuple[bool, int, str]] = []
        for module in self._modules:
            own = module.is_file_of(near)
            for number in module.code():
                if module.matches(pattern, number):
                    found.append((not own, abs(number - at) if own else number, module.shown(number)))
        return min(found, default=(False, 0, ""))[2]

    def mentions(self, pattern: str) -> int:
        """Return how often a pattern matches in the source."""
        return sum(len(re.findall(pattern, "\n".join(module.lines))) for module in self._modules)

    def within(self, line: str, pattern: str) -> str:
        """Return the last line that a pattern matches in the function that begins at a line."""
        for module, function in self._functions_of(line):
            decorators = (each.lineno for each in function.decorator_list)
            if _number(line) in (function.lineno, *decorators):
                own = [n for n in module.code() if function.lineno < n <= (function.end_lineno or 0)]
                return next((module.shown(n) for n in reversed(own) if module.matches(pattern, n)), "")
        return ""

    def around(self, line: str) -> str:
        """Return the line that begins the innermost function around a line."""
        found = self._around(line)
        return found[0].shown(found[1].lineno) if found else ""

    def end_of(self, line: str) -> str:
        """Return the last line of the innermost function around a line; "" if that line is the function's last."""
        found = self._around(line)
        last = found[1].body[-1].lineno if found else 0
        return found[0].shown(last) if found and last > _number(line) else ""

    def _around(self, line: str) -> tuple[_Module, ast.FunctionDef] | None:
        at = _number(line)
        around = [(m, f) for m, f in self._functions_of(line) if f.lineno <= at <= (f.end_lineno or 0)]
        return max(around, key=lambda each: each[1].lineno, default=None)

    @cached_property
    def _modules(self) -> list[_Module]:
        found = []
        for file in self.files:
            try:
                text = file.read_text(encoding="utf-8")
                found.append(_Module(file, ast.parse(text), text.splitlines()))
            except (OSError, ValueError, SyntaxError):
                continue
        return found

    def _functions_of(self, line: str) -> Iterator[tuple[_Module, ast.FunctionDef]]:
        """Yield the functions of the module that a line is in."""
        for module in self._modules:
            if module.is_file_of(line):
                for node in ast.walk(module.tree):
                    if isinstance(node, ast.FunctionDef):
                        yield module, node

    def _assigned(self, pattern: str) -> str:
        """Return the line that assigns a computed value to a name."""
        for module in self._modules:
            for node in (node for node in ast.walk(module.tree) if isinstance(node, ast.Assign)):
                named = any(re.search(pattern, _name_of(target)) for target in node.targets)
                if named and not isinstance(node.value, ast.Constant):
                    return module.shown(node.lineno)
        return ""

    def _function(self, names: Iterable[str]) -> tuple[_Module, ast.FunctionDef] | None:
        """Return the first function of the program that has one of these names."""
        found = ((module, f) for name in names for module in self._modules for f in module.functions(name))
        return next(found, None)

    def _function_behind(self, value: ast.expr, number: int, module: _Module) -> tuple[_Module, ast.FunctionDef] | None:
        """Return the function whose result is assigned; the assignments of a name are followed back."""
        for _ in range(MOST_ASSIGNMENTS):
            calls = [node.func for node in ast.walk(value) if isinstance(node, ast.Call)]
            if found := self._function(map(_name_of, calls)):
                return found
            used = set(_names(value))
            before = [node for node in _assignments(module.tree, used) if node.lineno < number]
            if not before:
                return None
            last = max(before, key=lambda node: node.lineno)
            value, number = last.value, last.lineno
        return None


def _number(line: str) -> int:
    """Return the number of a line, `train.py:31: source`; 0 for ""."""
    rest = line.partition(":")[2]
    return int(rest.partition(":")[0]) if rest else 0


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


def _divisions(tree: ast.Module) -> Iterator[tuple[int, ast.expr]]:
    """Yield the line and the divisor of each division."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            yield node.lineno, node.right
        elif isinstance(node, ast.AugAssign) and isinstance(node.op, ast.Div):
            yield node.lineno, node.value


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
