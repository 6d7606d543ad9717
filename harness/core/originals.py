"""The functions and classes that a verdict is computed with: what a subject replaced of them, and the original ones.

A subject shares this process with its judge. What it replaces, as `torch.nn.functional.gelu` or a class of Hugging
Face's, is in force while the subject runs, and never while the oracle runs (`originals`).
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import torch

from harness.core.error_text import display_path, is_user_file
from harness.core.one_thread import one_thread

P = ParamSpec("P")
T = TypeVar("T")

# The modules whose functions, classes and tables are observed, with those below them.
WATCHED = (
    *("torch", "torch.nn.functional", "torch.nn.init", "torch.nn.modules", "torch.autograd", "torch.functional"),
    *("torch.linalg", "torch.random", "torch.special", "torch.testing", "torch.overrides", "math", "builtins"),
    *("transformers.activations", "transformers.models.gpt2.modeling_gpt2", "transformers.modeling_utils"),
    *("transformers.generation.utils", "transformers.generation.logits_process", "transformers.pytorch_utils"),
    *("transformers.masking_utils", "transformers.integrations.sdpa_attention"),
    *("harness.core", "harness.suites", "harness.subjects", "harness.oracle", "harness.measures"),
    *("harness.diagnosis", "harness.judging"),
)
ALONE = ("torch", "torch.testing", "torch.autograd", "torch.overrides", "builtins", "math")  # without those below them
CLASSES_APART = ("torch", "builtins", "harness.core.originals")  # with hundreds of classes; `torch.Tensor` is observed
# What checks themselves compute with, also while the subject's replacements are in force. A verdict that is reached
# with a replacement of these is none.
JUDGES = (
    *("harness.", "builtins.", "math.", "torch.Tensor.", "torch.TensorBase.", "torch.testing.", "torch.linalg."),
    *("torch.equal", "torch.allclose", "torch.isclose", "torch.isfinite", "torch.isnan", "torch.isinf", "torch.abs"),
    *("torch.max", "torch.amax", "torch.min", "torch.sub", "torch.stack", "torch.cat", "torch.where", "torch.all"),
    *("torch.any", "torch.is_tensor", "torch.nextafter", "torch.finfo", "torch.no_grad", "torch.autograd."),
)


@dataclass(frozen=True, eq=False)
class Patch:
    """One replaced name: its owner (a module, a class or a table), the original value and the subject's."""

    owner: Any
    name: str
    original: Any
    value: Any
    path: str  # as `torch.nn.functional.gelu`

    def __str__(self) -> str:
        place = _defined_at(self.value)
        return f"{self.path} ({place})" if place else self.path

    @property
    def spoils_verdicts(self) -> bool:
        """True if checks themselves compute with what is replaced."""
        return any(self.path == word or (word.endswith(".") and self.path.startswith(word)) for word in JUDGES)

    def apply(self) -> None:
        """Put the subject's value in force."""
        _put(self.owner, self.name, self.value)

    def undo(self) -> None:
        """Restore the original value."""
        _put(self.owner, self.name, self.original)


def _put(owner: Any, name: str, value: Any) -> None:
    with contextlib.suppress(AttributeError, TypeError):
        if isinstance(owner, dict):
            dict.__setitem__(owner, name, value)  # a subclass may refuse
        elif value is _ABSENT:
            delattr(owner, name)
        else:
            setattr(owner, name, value)


_ABSENT: Any = object()
_TORCH = os.path.join(os.path.dirname(torch.__file__), "")


@dataclass(eq=False)
class _Watched:
    """A namespace with its values as they were: of a module, a class or a table."""

    owner: Any
    names: Mapping[str, Any]  # as they are now
    before: dict[str, Any]
    path: str

    def __post_init__(self) -> None:
        self.accept()

    def accept(self) -> None:
        """Take the values as they are now for unchanged ones."""
        self._values = self._now()

    @property
    def is_unchanged(self) -> bool:
        """True if the values are those last accepted, in order. Asked a million times in a run: lists are fast."""
        try:
            return self._now() == self._values  # identity first
        except Exception:  # a tensor or an array that was replaced
            return False

    def _now(self) -> list[Any]:
        return list(dict.values(self.names) if isinstance(self.names, dict) else self.names.values())


class Originals:
    """The values of all names of the watched modules, of their classes and tables, as they were when last recorded."""

    def __init__(self) -> None:
        self._watched: list[_Watched] = []
        self._seen: set[int] = set()
        self._modules = 0
        self._found: dict[tuple[int, str, int], Patch] = {}  # one object for one patch, however often it is found

    def record(self) -> None:
        """Take the present values as the original ones."""
        self.__init__()  # type: ignore[misc]
        self.extend()

    def extend(self) -> None:
        """Record the watched modules that were loaded since the last call."""
        if len(sys.modules) == self._modules:
            return
        self._modules = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if isinstance(module, ModuleType) and id(module) not in self._seen and _is_watched(name):
                self._seen.add(id(module))
                self._add(module, vars(module), name)
        for kind, name in ((torch.Tensor, "torch.Tensor"), (torch._C.TensorBase, "torch.TensorBase")):
            if id(kind) not in self._seen:
                self._seen.add(id(kind))
                self._add(kind, vars(kind), name)

    def _add(self, owner: Any, names: Mapping[str, Any], path: str) -> None:
        self._watched.append(_Watched(owner, names, dict(names), path))
        for name, value in list(names.items()):
            own_class = isinstance(value, type) and value.__module__ == path and path not in CLASSES_APART
            if own_class and id(value) not in self._seen:
                self._seen.add(id(value))
                self._add(value, vars(value), f"{path}.{name}")
            elif isinstance(value, dict) and name[:1].isupper() and id(value) not in self._seen:
                self._seen.add(id(value))
                raw = dict(dict.items(value))  # a subclass may make a new value whenever it is read
                if any(callable(each) or isinstance(each, tuple) for each in raw.values()):
                    self._watched.append(_Watched(value, value, raw, f"{path}.{name}"))  # a table: OPERATIONS, ACT2FN

    def patches(self) -> list[Patch]:
        """Return what is replaced now. A function that torch or transformers itself replaced is an original."""
        found = list[Patch]()
        for each in self._watched:
            if each.is_unchanged:
                continue
            owner, names, before, path, known = each.owner, each.names, each.before, each.path, len(found)
            replaced = [name for name, value in before.items() if names.get(name, _ABSENT) is not value]
            for name in replaced:
                value, original = names.get(name, _ABSENT), before[name]
                if not (callable(original) or isinstance(original, staticmethod | classmethod | property | tuple)):
                    before[name] = value  # a cache or a counter
                elif self._is_of_torch(value):
                    before[name] = value
                else:
                    patch = Patch(owner, name, original, value, f"{path}.{name}")
                    found.append(self._found.setdefault((id(owner), name, id(value)), patch))
            hiding = [name for name in names if name not in before and self._hides(owner, name)]
            for name in hiding:
                patch = Patch(owner, name, _ABSENT, names[name], f"{path}.{name}")
                found.append(self._found.setdefault((id(owner), name, id(names[name])), patch))
            if not replaced and not hiding:  # a name was added
                each.before = dict(names)
            if len(found) == known:
                each.accept()
        return found

    def _hides(self, owner: Any, name: str) -> bool:
        """Return True for a method that a class was given in place of an inherited one: `torch.Tensor.abs = ...`."""
        if not isinstance(owner, type) or self._is_of_torch(vars(owner)[name]):
            return False
        return callable(vars(owner)[name]) and any(name in vars(base) for base in owner.__mro__[1:])

    def _is_of_torch(self, value: Any) -> bool:
        """Return True for a new function that torch itself put there, as an import of torch.compile's modules does."""
        file = getattr(getattr(value, "__code__", None), "co_filename", "")
        return file.startswith(_TORCH) and not any(
            value is original for each in self._watched for original in each.before.values()
        )


def _is_watched(name: str) -> bool:
    if name in WATCHED:
        return True
    return any(name.startswith(f"{word}.") for word in WATCHED if word not in ALONE) and ".tests" not in name


def _defined_at(value: Any) -> str:
    """Return `file:line` of the user's function or class; "" for anything else."""
    inner = getattr(value, "__func__", None) or getattr(value, "fget", None) or getattr(value, "func", None) or value
    code = getattr(inner, "__code__", None)
    if code is None and isinstance(inner, type):
        code = next((each.__code__ for each in vars(inner).values() if hasattr(each, "__code__")), None)
    if code is None or not is_user_file(code.co_filename):
        return ""
    return f"{display_path(code.co_filename)}:{code.co_firstlineno}"


ORIGINALS = Originals()
_depth = 0  # of open `originals` blocks


@contextlib.contextmanager
def originals() -> Iterator[None]:
    """Restore everything that is replaced inside the block: the oracle runs in it."""
    global _depth
    active: list[Patch] = []
    if _depth == 0:
        ORIGINALS.extend()
        active = ORIGINALS.patches()
        _undo(active)
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1
        for patch in active:
            patch.apply()


def with_originals(function: Callable[P, T]) -> Callable[P, T]:
    """Return the function, computed inside `originals`."""

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        with originals():
            return function(*args, **kwargs)

    return wrapped


def _undo(patches: Iterable[Patch]) -> None:
    for patch in patches:
        patch.undo()


# What is replaced, as a global setting: see harness/core/global_state.py.


def replaced() -> dict[str, Patch]:
    """Return what is replaced now, by its path and the line of the replacement."""
    return {str(patch): patch for patch in ORIGINALS.patches()}


def restore_replaced(before: Mapping[str, Patch]) -> None:
    """Restore what is replaced now, except for what was replaced `before`."""
    _undo(patch for name, patch in replaced().items() if before.get(name) is not patch)
    for patch in before.values():
        patch.apply()


_of_subjects: dict[str, list[Patch]] = {}  # by the subject's name: what it has replaced so far, at import or later


@contextlib.contextmanager
def replacements_of(subject: str) -> Iterator[list[Patch]]:
    """Put in force what the subject of this name has replaced so far, inside the block: it relies on it.

    Yields a list that has, after the block, what it replaced inside; this is not restored.
    """
    before, new = list(_of_subjects.get(subject, ())), list[Patch]()
    for patch in before:
        patch.apply()
    try:
        yield new
    finally:
        now = ORIGINALS.patches()
        new += [patch for patch in now if patch not in before]
        _undo(patch for patch in now if patch in before)
        _of_subjects[subject] = [*before, *new]


def remember_replacements(subject: str, patches: Sequence[Patch]) -> None:
    """Store what importing the subject replaced, for `replacements_of`."""
    _of_subjects[subject] = list(patches)


# What no comparison of names shows: a kernel that torch.library replaced, a mode that is still on.

_X = torch.linspace(-3, 3, 24, dtype=torch.float64).view(4, 6)
# Bound now: the names may be replaced later.
_EQUAL = torch.equal
_OPERATIONS: tuple[tuple[str, Callable[[], torch.Tensor]], ...] = (
    ("torch.tanh", functools.partial(torch.tanh, _X)),
    ("torch.exp", functools.partial(torch.exp, _X)),
    ("torch.erf", functools.partial(torch.erf, _X)),
    ("torch.matmul", functools.partial(torch.matmul, _X, _X.T)),
    ("torch.softmax", functools.partial(torch.softmax, _X, -1)),
    ("gelu", functools.partial(torch._C._nn.gelu, _X)),
    ("the tanh gelu", functools.partial(torch._C._nn.gelu, _X, approximate="tanh")),
    ("layer_norm", functools.partial(torch.layer_norm, _X, [6])),
    ("cross_entropy", functools.partial(torch._C._nn.cross_entropy_loss, _X, torch.arange(4))),
    ("subtraction", functools.partial(torch.sub, _X, 1.5)),
    ("torch.max", functools.partial(torch.max, _X)),
)


def _results() -> list[torch.Tensor]:
    with torch.no_grad(), one_thread():  # a process in which OpenMP has worked cannot be forked (see `forked`)
        return [operation() for _, operation in _OPERATIONS]


_EXPECTED = _results()


def operations_changed() -> list[str]:
    """Return the operations of torch that compute something else than they did before any subject was imported."""
    same = (_EQUAL(found, right) for found, right in zip(_results(), _EXPECTED, strict=True))
    return [name for (name, _), agrees in zip(_OPERATIONS, same, strict=True) if not agrees]
