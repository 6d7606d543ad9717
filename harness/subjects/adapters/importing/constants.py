"""The numbers at the top level of a module that have a name, and their replacement in its syntax tree."""

from __future__ import annotations

import ast
import copy
from collections.abc import Callable, Iterator, Mapping

from harness.subjects.adapters.importing.top_level import TopLevel

Number = int | float
COMPUTED = -1


def constants(top: TopLevel) -> dict[str, Number]:
    """Return the named numbers of a module: `n_embd`, `Config.n_embd` of a class, `CONFIG.model.n_embd` of a dict.

    A size that is computed from what acts, as `vocab_size = len(characters)`, is one too, with the value COMPUTED.
    """
    found: dict[str, Number] = {}

    def note(word: str, value: ast.expr) -> ast.expr:
        number = _number(value)
        found[word] = COMPUTED if number is None else number
        return value

    _visit(copy.deepcopy(top.tree), top, note)
    return found


def with_constants(top: TopLevel, values: Mapping[str, Number]) -> ast.Module:
    """Return the module's syntax tree with other numbers; expressions that are derived from them are unchanged."""

    def put(word: str, value: ast.expr) -> ast.expr:
        return ast.copy_location(ast.Constant(values[word]), value) if word in values else value

    return ast.fix_missing_locations(_visit(copy.deepcopy(top.tree), top, put))


def _visit(tree: ast.Module, top: TopLevel, at: Callable[[str, ast.expr], ast.expr]) -> ast.Module:
    """Call `at` for each named number, and put its answer there."""
    computed = {statement.node.lineno for statement in top.statements if top.is_computed_size(statement)}
    modules = {s.name for s in tree.body if isinstance(s, ast.ClassDef) and top.is_module(s)}
    for node in tree.body:
        for statement in _with_branches(node):
            if isinstance(statement, ast.ClassDef) and statement.name not in modules:
                for inner in statement.body:
                    _assignment(inner, f"{statement.name}.", at, frozenset())
            else:
                _assignment(statement, "", at, computed)
    return tree


def _with_branches(node: ast.stmt) -> Iterator[ast.stmt]:
    yield node
    if isinstance(node, ast.If | ast.Try):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.stmt):
                yield from _with_branches(child)


def _assignment(
    node: ast.stmt, prefix: str, at: Callable[[str, ast.expr], ast.expr], computed: frozenset[int] | set[int]
) -> None:
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):  # n_layer, n_head = 12, 12
            pairs = zip(target.elts, node.value.elts, strict=False)
            node.value.elts = [_value(prefix, t, v, at, is_computed=False) for t, v in pairs]
        else:
            node.value = _value(prefix, target, node.value, at, is_computed=node.lineno in computed)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        node.value = _value(prefix, node.target, node.value, at, is_computed=node.lineno in computed)
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        _argument(node.value, at)


def _value(
    prefix: str, target: ast.expr, value: ast.expr, at: Callable[[str, ast.expr], ast.expr], *, is_computed: bool
) -> ast.expr:
    if not isinstance(target, ast.Name | ast.Attribute):
        return value
    word = prefix + ast.unparse(target)
    if _number(value) is not None or is_computed:
        return at(word, value)
    if isinstance(value, ast.Dict):
        for number, (key, item) in enumerate(zip(value.keys, value.values, strict=True)):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                value.values[number] = _value(f"{word}.", ast.Name(key.value), item, at, is_computed=False)
    elif isinstance(value, ast.Call):  # CONFIG = Config(n_layer=12), dict(n_layer=12)
        for keyword in value.keywords:
            if keyword.arg is not None:
                keyword.value = _value(f"{word}.", ast.Name(keyword.arg), keyword.value, at, is_computed=False)
    return value


def _argument(call: ast.Call, at: Callable[[str, ast.expr], ast.expr]) -> None:
    """Visit the default of `parser.add_argument("--n_embd", default=768)`."""
    if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument":
        flags = [a.value for a in call.args if isinstance(a, ast.Constant) and str(a.value).startswith("--")]
        for keyword in call.keywords:
            if flags and keyword.arg == "default" and _number(keyword.value) is not None:
                keyword.value = at(f"args.{str(flags[0])[2:].replace('-', '_')}", keyword.value)


def _number(node: ast.expr) -> Number | None:
    """Return the value of an expression of numbers alone, such as 64 * 6; None for any other."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, int | float) and not isinstance(node.value, bool) else None
    if isinstance(node, ast.BinOp | ast.UnaryOp):
        inner = [child for child in ast.walk(node) if isinstance(child, ast.expr)]
        if all(isinstance(child, ast.BinOp | ast.UnaryOp | ast.Constant) for child in inner):
            try:
                value = eval(
                    compile(ast.Expression(node), "", "eval", dont_inherit=True), {"__builtins__": {}}
                )  # numbers alone, as above
            except (ArithmeticError, TypeError, ValueError):
                return None
            return value if isinstance(value, int | float) else None
    return None
