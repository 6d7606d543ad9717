"""The literals in a program's source that set something: constants, defaults, entries of dicts, arguments of calls.

They are found by their names (`setting_words.py`), in the script, in the modules of the project that it imports and in
the configuration files that these name, and are replaced in memory when the program runs. No file is changed.
"""

from __future__ import annotations

import ast
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from harness.core.errors import SubjectError, did_you_mean
from harness.training import config_files
from harness.training.overridden_defaults import overridden_defaults
from harness.training.setting_words import word_of

# Words of the model's and the batch's size, and of the machine, which all modules must agree on: they are set wherever
# a literal has their name.
SIZES = frozenset(
    (
        *("n_layer", "n_head", "n_embd", "block_size", "batch_size", "tokens_per_step"),
        *("dropout", "workers", "compile", "device"),
    )
)
# Words that make a run short and reproducible. Where the script assigns one once, only that literal is set: a number in
# another place may be a mistake. Other words, such as the learning rate, are set in no other place at all.
COUNTS = frozenset(
    (
        *("accumulation", "steps", "warmup", "horizon", "seed"),
        *("eval_every", "eval_batches", "sample_every", "sample_tokens", "save_every", "log_every"),
    )
)
# The least value that a literal of a short name has, so that `dim=-1` and `heads=1` of something else stay.
LEAST: Mapping[str, int] = {"n_embd": 8, "block_size": 8}
SEEDS = frozenset(("manual_seed", "set_seed", "seed_everything", "seed_all"))
TEXT_FILE = re.compile(r"(?!.*(://|\s)).+\.(txt|text)", re.IGNORECASE)
OTHER_FILE = re.compile(
    r"log|out(?!side)|result|sample|generat|require|readme|license|metric|loss|history|vocab|merges|note"
)
# Calls of libraries whose arguments are a program's settings; of others, such as softmax(dim=-1), they are not.
LIBRARY_CALLS = frozenset(("DataLoader", "dict", "namedtuple", "SimpleNamespace"))
CONFIG_FOLDERS = ("conf", "../conf")  # how the names of folders of configurations begin
LOOK_UPS = frozenset(("get", "pop", "getattr"))  # calls that end in a name and its default
ARITHMETIC = {ast.Mult: operator.mul, ast.Add: operator.add, ast.Sub: operator.sub, ast.FloorDiv: operator.floordiv,
              ast.Div: operator.truediv, ast.Pow: operator.pow}  # fmt: skip
Place = tuple[int, int]  # the line and the column where an expression begins
UNKNOWN = object()


@dataclass(frozen=True)
class Literal:
    """A literal that sets something.

    Attributes:
        word: What it sets, a key of WORDS.
        name: What the program calls it.
        default: Its value in the source.
        file: Where it is.
        place: Line and column of the expression.
        kind: "assignment", "default", "entry" (of a dict), "argument", "seed", "text" (the path of a text) or
            "configuration" (in a file that is no Python).
    """

    word: str
    name: str
    default: Any
    file: str
    place: Place
    kind: str


def settable_literals(files: Sequence[Path]) -> dict[str, tuple[Literal, ...]]:
    """Return the literals that can be replaced, by word; `files` are the script and the modules that it imports."""
    folders = Counter(file.parent for file in files if file.suffix in config_files.SUFFIXES)
    alternatives = {str(file) for file in files if folders[file.parent] > 1}  # of which the program may read one
    found = [each for file in files for each in literals_of(file)]
    unused = overridden_defaults(files)
    found = [
        each
        for each in found
        if each.word in SIZES or (each.file not in alternatives and (each.file, each.place) not in unused)
    ]
    chosen: dict[str, tuple[Literal, ...]] = {}
    for word in dict.fromkeys(each.word for each in found):
        own = [each for each in found if each.word == word]
        if word == "text":
            named = [each for each in own if each.kind != "text"]
            paths = {Path(each.default).name for each in own if each.kind == "text"}
            usable = [*_alone(named, files), *(each for each in own if each.kind == "text" and len(paths) == 1)]
        elif word in SIZES:
            usable = own
        else:
            named = [each for each in own if each.kind != "seed"]
            usable = _alone(own, files) or ((named or own) if word in COUNTS else [])
        if usable:
            chosen[word] = tuple(usable)
    return chosen


def _is_optimizer_group(node: ast.Dict) -> bool:
    """Return True for a dict with parameters: its numbers make it other than the other groups."""
    return any(isinstance(key, ast.Constant) and key.value == "params" for key in node.keys)


def _alone(literals: Sequence[Literal], files: Sequence[Path]) -> list[Literal]:
    """Return the only assignment of a word in the script, else the only entry of a dict, or of a configuration file."""
    configured = {each.file for each in literals if each.kind == "configuration"}
    for kind in ("assignment", "entry", "configuration"):
        of_kind = [each for each in literals if each.kind == kind and each.file in (str(files[0]), *configured)]
        if of_kind:
            return of_kind if len(of_kind) == 1 else []
    return []


def chosen_literals(files: Sequence[Path], choices: Sequence[str]) -> tuple[Literal, ...]:
    """Return the literals of the names that the user set with `--set NAME=VALUE`, each with the value as its default.

    Raises SubjectError for a name that no literal has, and for a choice without a name or a value.
    """
    found: list[Literal] = []
    for choice in choices:
        name, equals, text = choice.partition("=")
        if not equals or not name.strip():
            raise SubjectError(f"--set {choice}: expected NAME=VALUE, such as --set batch_size=4")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        own = [each for file in files for each in literals_of(file, name.strip()) if each.name == name.strip()]
        if not own:
            names = {each.name for file in files for each in literals_of(file)}
            near = did_you_mean(name, names) if names else "the program has no literal that is a setting"
            raise SubjectError(f"--set {choice}: no literal is called {name}; {near}")
        found += [replace(each, default=value) for each in own]
    return tuple(found)


def literals_of(file: Path, *names: str) -> Iterator[Literal]:
    """Yield every literal of a file that has the name of a setting, or one of `names`."""
    if file.suffix in config_files.SUFFIXES:
        for name, value, place in config_files.entries(file):
            text = isinstance(value, str) and _is_path_of_text(value)
            word = word_of(name) or ("text" if text else "" if name in names else None)
            if word is not None and (name in names or _fits(word, value)):
                yield Literal(word, name, value, str(file), place, "text" if text else "configuration")
        return
    try:
        tree = ast.parse(file.read_bytes(), str(file))
    except (OSError, SyntaxError, ValueError):
        return
    own = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
    imported = {
        alias.asname or alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if not (node.module or "").startswith(("torch", "numpy"))
    }
    formatted = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in formatted:
            continue
        for kind, name, value in _named_values(node, own | imported):
            default = value_of(value)
            if default is UNKNOWN:
                continue
            word = "seed" if kind == "seed" else "text" if kind == "text" else word_of(name)
            if name in names:
                word = word or ""
            elif word is None or not _fits(word, default):
                continue
            if word is not None:
                yield Literal(word, name, default, str(file), (value.lineno, value.col_offset), kind)


def _named_values(node: ast.AST, own: set[str]) -> Iterator[tuple[str, str, ast.expr]]:
    """Yield what a node gives a name to: the kind, the name and the expression."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and _is_path_of_text(node.value):
        yield "text", "text", node
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from _assigned(target, node.value)
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        yield from _assigned(node.target, node.value)
    elif isinstance(node, ast.Dict) and not _is_optimizer_group(node):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield "entry", key.value, value
    elif isinstance(node, ast.FunctionDef):
        given = [*node.args.posonlyargs, *node.args.args]
        defaults = node.args.defaults
        for argument, value in zip(given[len(given) - len(defaults) :], defaults, strict=True):
            yield "default", argument.arg, value
        for argument, default in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True):
            if default is not None:
                yield "default", argument.arg, default
    elif isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if called in LOOK_UPS and len(node.args) > 1:  # options.get("n_layer", 4)
            name, default = node.args[-2:]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield "default", name.value, default
        if called in SEEDS and len(node.args) == 1:
            yield "seed", called, node.args[0]
        if called in own | LIBRARY_CALLS:
            for keyword in node.keywords:
                if keyword.arg is not None:
                    yield "argument", keyword.arg, keyword.value


def _assigned(target: ast.expr, value: ast.expr) -> Iterator[tuple[str, str, ast.expr]]:
    """Yield the names that an assignment gives, of a tuple each."""
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
        for one, part in zip(target.elts, value.elts, strict=True):
            yield from _assigned(one, part)
    elif isinstance(target, ast.Name | ast.Attribute):
        name = target.id if isinstance(target, ast.Name) else target.attr
        yield "assignment", name, value


def _is_path_of_text(value: str) -> bool:
    """Return True for the path of a text, as far as its name tells: a log or a list of requirements is none."""
    return bool(TEXT_FILE.fullmatch(value)) and not OTHER_FILE.search(Path(value).stem.lower())


def value_of(node: ast.expr) -> Any:
    """Return the value of an expression of constants, such as `5 * 8` or `2**19`; UNKNOWN for another one."""
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = value_of(node.operand)
        return -value if isinstance(value, int | float) else UNKNOWN
    if isinstance(node, ast.BinOp) and type(node.op) in ARITHMETIC:
        left, right = value_of(node.left), value_of(node.right)
        if isinstance(left, int | float) and isinstance(right, int | float) and abs(right) < 1e6:
            try:
                value = ARITHMETIC[type(node.op)](left, right)
            except (ArithmeticError, ValueError):
                return UNKNOWN
            return value
    return UNKNOWN


def _fits(word: str, default: Any) -> bool:
    """Return True if the value in the source is of the kind that the setting has."""
    if word in (
        "compile",
        "device",
        "precision",
        "text",
        "out",
        "resume",
        "schedule",
        "order",
        "vocabulary",
        "backend",
    ):
        return isinstance(default, bool | int | str)
    if not isinstance(default, int | float) or isinstance(default, bool):
        return False
    return bool(default >= LEAST.get(word, 0))


def replaced(tree: ast.Module, values: Mapping[Place, Any]) -> ast.Module:
    """Return the tree with the expressions at these places replaced by values; the line numbers stay."""
    _Replacer(values).visit(tree)
    return ast.fix_missing_locations(tree)


class _Replacer(ast.NodeTransformer):
    def __init__(self, values: Mapping[Place, Any]) -> None:
        self.values = values

    def visit(self, node: ast.AST) -> ast.AST:
        place = (getattr(node, "lineno", 0), getattr(node, "col_offset", -1))
        if place in self.values and isinstance(node, ast.expr) and value_of(node) is not UNKNOWN:
            return ast.copy_location(ast.parse(repr(self.values[place]), mode="eval").body, node)
        return self.generic_visit(node)


def project_files(script: Path, roots: Sequence[Path], *, arguments: Sequence[str] = (), most: int = 200) -> list[Path]:
    """Return the script, the modules of the project that it imports, directly or not, and their configuration files.

    A file that the script executes with `exec(open(...).read())` is among them, and a configuration file that the
    user's arguments name. Nothing is executed.
    """
    named = (argument.rpartition("=")[2] for argument in arguments)
    configured = (root / name for name in named if _names_settings(name) for root in roots)
    found = list(dict.fromkeys([script, *(path.resolve() for path in configured if path.is_file())]))
    for file in found:
        try:
            tree = ast.parse(file.read_bytes(), str(file))
        except (OSError, SyntaxError, ValueError):
            continue
        for name in _mentioned(tree):
            for root in dict.fromkeys((file.parent, *roots)):
                for path in _files_called(root, name):
                    if path.resolve() not in found and len(found) < most:
                        found.append(path.resolve())
    return found


def _files_called(root: Path, name: str) -> Iterator[Path]:
    """Yield the files that a module or a path means: of a folder of configurations, as Hydra's, all of them."""
    for path in (root / f"{name}.py", root / name / "__init__.py", root / name):
        if path.suffix in (".py", *config_files.SUFFIXES) and path.is_file():
            yield path
    if name.startswith(CONFIG_FOLDERS) and (root / name).is_dir():
        yield from sorted(path for path in (root / name).rglob("*.*") if path.suffix in config_files.SUFFIXES)


def _mentioned(tree: ast.Module) -> Iterator[str]:
    """Yield what a module imports, as relative paths without suffix, and the files that it names to read settings."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.replace(".", "/")
        elif isinstance(node, ast.ImportFrom):
            base = (node.module or "").replace(".", "/")
            above = "../" * max(node.level - 1, 0)
            if base:
                yield above + base
            for alias in node.names:
                yield f"{above}{base}/{alias.name}" if base else f"{above}{alias.name}"
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "exec":
            for inner in ast.walk(node):
                if isinstance(inner, ast.Constant) and isinstance(inner.value, str) and inner.value.endswith(".py"):
                    yield inner.value
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _names_settings(node.value):
            yield node.value


def _names_settings(text: str) -> bool:
    """Return True for what may be the path of a configuration file, or of a folder of them."""
    return Path(text).suffix in config_files.SUFFIXES or (text.startswith(CONFIG_FOLDERS) and text.count("\n") == 0)
