"""The constants that a program assigns under `if __name__ == "__main__":` and that its definitions need."""

from __future__ import annotations

import ast
import builtins
import copy
from collections.abc import Callable, Iterator

from harness.subjects.adapters.construction.setting_names import SIZES, quantity_of

# Of a size that is computed from what is not run, such as len(characters), until another value is put there: GPT-2's.
PUBLISHED = {"vocab_size": 50257, "context": 1024, "layers": 12, "heads": 12, "width": 768}


def is_main(node: ast.stmt) -> bool:
    """Return True for `if __name__ == "__main__":`."""
    return isinstance(node, ast.If) and any(isinstance(n, ast.Name) and n.id == "__name__" for n in ast.walk(node.test))


def script_constants(
    body: list[ast.stmt], bound: frozenset[str], needed: frozenset[str], acts: Callable[[ast.AST], bool]
) -> list[ast.Assign]:
    """Return the assignments under `if __name__ == "__main__":` to names that are `needed` and not `bound` elsewhere.

    An expression that neither acts nor needs another name of the block is taken as it is; a size that is computed from
    what is not run has GPT-2's value. `a = b = 64` is two assignments. Nothing else of the block is returned.
    """
    known, found = set(bound) | set(dir(builtins)), list[ast.Assign]()
    for target, value in (pair for node in body if is_main(node) for pair in _assigned(node)):
        is_available = {n.id for n in ast.walk(value) if isinstance(n, ast.Name)} <= known and not acts(value)
        quantity = quantity_of(target.id, ())
        if target.id in bound or not (is_available or (quantity in SIZES and target.id in needed)):
            continue
        taken = (
            copy.deepcopy(value) if is_available else ast.copy_location(ast.Constant(PUBLISHED[str(quantity)]), value)
        )
        found.append(ast.copy_location(ast.Assign([target], taken), value))
        known.add(target.id)
    return _used(found, needed)


def _assigned(node: ast.stmt) -> Iterator[tuple[ast.Name, ast.expr]]:
    """Yield each name that the block assigns by itself, with its value, in order."""
    for child in node.body if isinstance(node, ast.If) else ():
        targets = (
            child.targets
            if isinstance(child, ast.Assign)
            else [child.target]
            if isinstance(child, ast.AnnAssign)
            else []
        )
        value = child.value if isinstance(child, ast.Assign | ast.AnnAssign) else None
        for target in targets:
            if isinstance(target, ast.Name) and value is not None:
                yield target, value
            elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                pairs = zip(target.elts, value.elts, strict=False)
                yield from ((name, each) for name, each in pairs if isinstance(name, ast.Name))


def _used(found: list[ast.Assign], needed: frozenset[str]) -> list[ast.Assign]:
    """Return the assignments whose names are needed, by a definition or by a later assignment that is."""
    wanted, used = set(needed), list[ast.Assign]()
    for node in reversed(found):
        names = {n.id for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        if names & wanted:
            wanted |= {n.id for n in ast.walk(node.value) if isinstance(n, ast.Name)}
            used.insert(0, node)
    return used
