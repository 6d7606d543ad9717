"""What a subject computes, tensor by tensor, with the line of the user's source that made each."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import itertools
import linecache
import os
import sys
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from harness.subjects.model import Model

# Two float64 programs for one function differ by some 1e-15 of the values' size; a bug leaves far more.
SAME = 1e-10
_TORCH = os.path.dirname(torch.__file__)
_HARNESS = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


@dataclass(frozen=True)
class SourceLine:
    """A line of source, as a user would open it."""

    file: str
    number: int

    def __str__(self) -> str:
        folder = os.getcwd() + os.sep
        return f"{self.file.removeprefix(folder)}:{self.number}"

    @property
    def text(self) -> str:
        """The line itself, without its indentation."""
        return linecache.getline(self.file, self.number).strip()


@dataclass(frozen=True)
class Step:
    """One operation of the subject's: its name in PyTorch, a copy of what it gave, and where it was asked for.

    `made`: for a layer of PyTorch's own (`nn.GELU()`), the line that made the layer.
    """

    operation: str
    tensor: Tensor
    dtype: torch.dtype
    line: SourceLine | None
    made: SourceLine | None = None
    stack: tuple[
        tuple[SourceLine, int], ...
    ] = ()  # the user's lines that led there, innermost first, each with its `self`

    def line_in(self, owner: nn.Module | None) -> SourceLine | None:
        """The line within a method of `owner` that led there; the innermost one where there is none."""
        return next((line for line, own in self.stack if owner is not None and own == id(owner)), self.line)


@dataclass
class Observation:
    """One forward pass of the subject, step by step, and its logits."""

    steps: list[Step]
    logits: Tensor
    _index: dict[int, list[tuple[float, int, tuple[float, float, float]]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps):
            own = sums(step.tensor)
            self._index.setdefault(step.tensor.numel(), []).append((own[0], number, own))
        for entries in self._index.values():
            entries.sort()

    def find(self, expected: Tensor, *, after: int = -1, tolerance: float = SAME) -> int | None:
        """The first step that gave `expected`, its axes in any order; None where no step did."""
        candidates = self._index.get(expected.numel())
        own = sums(expected)
        if not candidates:
            return None
        slack = 10 * tolerance * max(own[1], 1e-300)
        first = bisect.bisect_left(candidates, own[0] - slack, key=lambda entry: entry[0])
        near = itertools.takewhile(lambda entry: entry[0] <= own[0] + slack, candidates[first:])
        numbers = sorted(number for _, number, other in near if number > after and alike(own, other, tolerance))
        return next((n for n in numbers if _same(self.steps[n].tensor, expected, tolerance)), None)

    def like(self, expected: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Steps that gave as many values as `expected` has, in its shape."""
        for _, number, _ in self._index.get(expected.numel(), []):
            yield number, self.steps[number].tensor.reshape(expected.shape)

    def line(self, number: int | None, *, made: bool = False) -> SourceLine | None:
        """Where in the user's source a step was asked for, or where the layer that does it was made."""
        if number is None:
            return None
        step = self.steps[number]
        return (step.made if made else None) or step.line


def observe(model: Model, ids: Tensor, births: ModuleCreationSites | None = None) -> Observation:
    """One forward pass over `ids` (B, T) without gradients."""
    with torch.no_grad(), OperationRecorder(births) as recorder:
        logits = model.logits(ids)
    return Observation(recorder.steps, logits.detach().double())


def own_files(model: Model) -> set[str]:
    """The files that the model's own modules are defined in."""
    files = set()
    for kind in {type(module) for module in model.module.modules()}:
        with contextlib.suppress(TypeError, OSError):
            files.add(inspect.getsourcefile(kind) or "")
    return {file for file in files if file and not file.startswith(_TORCH)}


class ModuleCreationSites:
    """While open, notes the line of the user's source on which each module is made."""

    def __init__(self) -> None:
        self.lines: weakref.WeakKeyDictionary[nn.Module, SourceLine] = weakref.WeakKeyDictionary()

    def __enter__(self) -> ModuleCreationSites:
        self._before = before = nn.Module.__init__

        def init(module: nn.Module, *args: Any, **kwargs: Any) -> None:
            before(module, *args, **kwargs)
            # Where it is made, not where its own __init__ calls its base's.
            made = [line for line, owner in users_stack() if owner != id(module)]
            if made:
                self.lines[module] = made[0]

        nn.Module.__init__ = init  # type: ignore[method-assign, assignment]
        return self

    def __exit__(self, *error: object) -> None:
        nn.Module.__init__ = self._before  # type: ignore[method-assign]


class OperationRecorder(TorchDispatchMode):
    """While open, keeps a copy of every floating tensor that an operation gives."""

    def __init__(self, births: ModuleCreationSites | None = None) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._births = births or ModuleCreationSites()
        self._modules: list[nn.Module] = []

    def __enter__(self) -> OperationRecorder:
        self._hooks = (
            register_module_forward_pre_hook(lambda module, args: self._modules.append(module)),
            register_module_forward_hook(lambda module, args, out: self._left(module), always_call=True),
        )
        return super().__enter__()  # type: ignore[no-any-return]

    def __exit__(self, *error: Any) -> None:
        for hook in self._hooks:
            hook.remove()
        super().__exit__(*error)

    def _left(self, module: nn.Module) -> None:
        if module in self._modules:
            del self._modules[self._modules.index(module) :]

    def _made(self) -> SourceLine | None:
        module = self._modules[-1] if self._modules else None
        ready_made = module is not None and type(module).__module__.startswith("torch.")
        return self._births.lines.get(module) if ready_made and module is not None else None

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        line = made = None
        stack: tuple[tuple[SourceLine, int], ...] = ()
        for tensor in answer if isinstance(answer, tuple | list) else (answer,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point() and not tensor.is_meta:
                if line is None:
                    stack, made = users_stack(), self._made()
                    line = stack[0][0] if stack else users_line()
                copy = tensor.detach().to(torch.float64, copy=True)  # what comes next may write into it
                self.steps.append(Step(function.overloadpacket.__name__, copy, tensor.dtype, line, made, stack))
        return answer


def users_line() -> SourceLine | None:
    """The innermost line on the stack that is the user's own; where none is, an installed package's."""
    installed: SourceLine | None = None
    for frame in _frames():
        line = SourceLine(frame.f_code.co_filename, frame.f_lineno)
        if _is_users(line.file):
            return line
        if "pytest" not in line.file and "pluggy" not in line.file:
            installed = installed or line
    return installed


def users_stack(most: int = 6) -> tuple[tuple[SourceLine, int], ...]:
    """The user's lines on the stack, innermost first, each with the id of the `self` that it belongs to."""
    frames = itertools.islice((frame for frame in _frames() if _is_users(frame.f_code.co_filename)), most)
    return tuple((SourceLine(frame.f_code.co_filename, frame.f_lineno), _self_of(frame)) for frame in frames)


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_code.co_filename
        if not name.startswith((_TORCH, "<")) and not _is_ours(name):
            yield frame
        frame = frame.f_back  # type: ignore[assignment]


def _self_of(frame: FrameType) -> int:
    names = frame.f_code.co_varnames[: frame.f_code.co_argcount]
    return id(frame.f_locals.get(names[0])) if names else 0


def _is_users(name: str) -> bool:
    return "site-packages" not in name and "_pytest" not in name and not name.endswith("/bin/pytest")


def _is_ours(name: str) -> bool:
    return name.startswith(_HARNESS) and f"{os.sep}tests{os.sep}" not in name and f"{os.sep}faults{os.sep}" not in name


def sums(tensor: Tensor) -> tuple[float, float, float]:
    """The sums of a tensor's values, sizes and squares: whatever the order of the values, they tell most apart."""
    finite = torch.nan_to_num(tensor.double(), nan=0.0, posinf=0.0, neginf=0.0)
    return float(finite.sum()), float(finite.abs().sum()), float((finite * finite).sum())


def alike(a: tuple[float, float, float], b: tuple[float, float, float], tolerance: float) -> bool:
    """Whether two tensors with these sums may hold the same values."""
    slack = 10 * max(tolerance, 1e-12)
    size, squares = max(a[1], 1e-300), max(a[2], 1e-300)
    return (
        abs(a[0] - b[0]) <= slack * size
        and abs(a[1] - b[1]) <= slack * size
        and abs(a[2] - b[2]) <= 2 * slack * squares
    )


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Whether two tensors of as many values are one, but for the order of the expected one's axes.

    What is no number on both sides is alike, unless there is nothing else.
    """
    flat = found.reshape(-1)
    if bool(flat.isnan().all()):
        return False
    allowed = tolerance * max(float(torch.nan_to_num(expected, nan=0.0, posinf=0.0, neginf=0.0).abs().max()), 1e-300)
    for order in itertools.permutations(range(expected.ndim)):
        other = expected.permute(order).reshape(-1)
        alike_there = (flat == other) | (flat.isnan() & other.isnan())
        if float(torch.where(alike_there, 0.0, (flat - other).abs()).max()) <= allowed:
            return True
    return False
