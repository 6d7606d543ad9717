"""Find which class or function of a file is the GPT, from its text alone: nothing is imported or run."""

from __future__ import annotations

import ast
import re
from pathlib import Path

# Names that people give to a whole model, the likeliest first; a class that only matches none of them comes after.
MODEL_NAMES = (r"GPT", r"LanguageModel|LM", r"Transformer", r"Decoder", r"Model")
# Words of classes that belong to a GPT or train one.
PART_NAMES = (
    r"Config|Args|Dataset|Trainer|Tokenizer|Block|Layer|Head|Attention|MLP|FeedForward|Norm|Embedding|Optimizer"
)


def likely_models(path: Path) -> list[str]:
    """Return the names in a Python file that may be its GPT, the likeliest first; [] if there are none.

    A class is one if it is a module (by its bases, in the file or by name) or an adapter (it has `build`), and no other
    class of the file makes or extends it. A function is one if its name says GPT and it takes a size or parameters.
    Raises SyntaxError or OSError for a file that is no Python file.
    """
    tree = ast.parse(path.read_text(encoding="utf-8-sig"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    modules = [name for name in classes if _is_module(name, classes) or _is_adapter(classes[name])]
    parts = {used for name in modules for used in _names_in(classes[name]) - {name}}
    whole = [name for name in modules if name not in parts] or modules
    functions = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef)
        and (node.name == "build" or re.search("gpt", node.name, re.IGNORECASE))
        and node.args.args
    ]
    return sorted(whole, key=lambda name: _rank(name, classes)) + ([] if whole else functions)


def _rank(name: str, classes: dict[str, ast.ClassDef]) -> tuple[bool, int, int]:
    """Return the order of a class: whole models before parts, adapters first, then by name, then the last first."""
    place = next(
        (number for number, pattern in enumerate(MODEL_NAMES) if re.search(pattern, name)),
        len(MODEL_NAMES),
    )
    if _is_adapter(classes[name]):
        place = -1
    return bool(re.search(PART_NAMES, name)), place, -list(classes).index(name)


def _is_module(name: str, classes: dict[str, ast.ClassDef], seen: frozenset[str] = frozenset()) -> bool:
    """Return True if a class has a base whose name ends with Module, directly or by classes of the file."""
    if name in seen:
        return False
    for base in classes[name].bases:
        words = ast.unparse(base).split(".")
        if words[-1] in classes and len(words) == 1:
            if _is_module(words[0], classes, seen | {name}):
                return True
        elif words[-1].endswith(("Module", "PreTrainedModel", "Sequential")):
            return True
    return False


def _is_adapter(node: ast.ClassDef) -> bool:
    """Return True if a class has `name` and `build`, as an adapter has."""
    methods = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    named = any(isinstance(item, ast.Assign) and ast.unparse(item.targets[0]) == "name" for item in node.body)
    return "build" in methods and named


def _names_in(node: ast.ClassDef) -> set[str]:
    """Return the names that a class reads: its bases, and what its methods use."""
    return {found.id for found in ast.walk(node) if isinstance(found, ast.Name)}
