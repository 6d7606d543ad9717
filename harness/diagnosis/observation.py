"""An observation: what a subject computes in one forward pass, step by step, searchable by value."""

from __future__ import annotations

import bisect
import contextlib
import inspect
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from harness.core.source_lines import TORCH, SourceLine
from harness.diagnosis.recorders import ModuleCreationSites, OperationRecorder, Step, is_square
from harness.oracle.formula import visible
from harness.subjects.model import Model

# Relative. Two float64 programs for one function differ by some 1e-15 of the values' size; a bug by far more.
SAME = 1e-10
Sums = tuple[float, float, float]  # of a tensor's values, of their absolute values, of their squares


@dataclass
class Observation:
    """One forward pass of a subject: its steps, its logits (B, T, V) in float64, and its tensors that may be masks.

    `wrong_mask`: the line that gives a module a mask that is not the causal one; None if no line does.
    """

    steps: list[Step]
    logits: Tensor
    masks: list[Tensor] = field(default_factory=list)
    wrong_mask: SourceLine | None = None
    # By number of values: (sum of the values, number of the step, sums), sorted, so that `find` can bisect.
    _index: dict[int, list[tuple[float, int, Sums]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        for number, step in enumerate(self.steps):
            own = sums(step.tensor)
            self._index.setdefault(step.tensor.numel(), []).append((own[0], number, own))
        for entries in self._index.values():
            entries.sort()

    def find(self, expected: Tensor, *, after: int = -1, tolerance: float = SAME) -> int | None:
        """Return the first step that computed `expected`, its axes in any order; None if no step did.

        A value that is one number everywhere, as zeros are, is never found: that it is the same would mean nothing.
        """
        candidates = self._index.get(expected.numel()) if varies(expected) else None
        if not candidates:
            return None
        own = sums(expected)
        slack = 10 * tolerance * max(own[1], 1e-300)
        first = bisect.bisect_left(candidates, own[0] - slack, key=lambda entry: entry[0])
        near = itertools.takewhile(lambda entry: entry[0] <= own[0] + slack, candidates[first:])
        numbers = sorted(number for _, number, other in near if number > after and sums_agree(own, other, tolerance))
        return next((n for n in numbers if _same(self.steps[n].tensor, expected, tolerance)), None)

    def like(self, expected: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Yield the steps with as many values as `expected`, and their tensors in its shape."""
        for _, number, _ in self._index.get(expected.numel(), []):
            yield number, self.steps[number].tensor.reshape(expected.shape)

    def line(self, number: int | None, *, made: bool = False) -> SourceLine | None:
        """Return the line that called a step; with `made`, the line that created the layer, if there is one."""
        if number is None:
            return None
        step = self.steps[number]
        return (step.made if made else None) or step.line


def observe(model: Model, ids: Tensor, sites: ModuleCreationSites | None = None) -> Observation:
    """Run one forward pass over `ids` (B, T) without gradients and return the observation."""
    with torch.no_grad(), OperationRecorder(sites) as recorder:
        logits = model.logits(ids)
    wrong_mask = None if sites is None else line_of_wrong_mask(model.module, sites)
    return Observation(recorder.steps, logits.detach().double(), recorder.masks, wrong_mask)


def line_of_wrong_mask(module: nn.Module, sites: ModuleCreationSites) -> SourceLine | None:
    """Return the line that gives a module a tensor of two values, (..., T, T), that is no causal mask; None if none.

    A causal mask is one half of the square, in either polarity: 1 and 0, True and False, 0 and -inf.
    """
    for part in module.modules():
        for name, line in sites.square.get(part, {}).items():
            value = getattr(part, name, None)
            if isinstance(value, Tensor) and is_square(value) and len(values := value.unique()) <= 2:
                half = visible(*value.shape[-2:]).to(value.device)
                if not any(bool(((value == each) == half).all()) for each in values):
                    return line
    return None


def own_files(model: Model) -> set[str]:
    """Return the files, outside PyTorch, in which the model's modules are defined."""
    files = set()
    for kind in {type(module) for module in model.module.modules()}:
        with contextlib.suppress(TypeError, OSError):
            files.add(inspect.getsourcefile(kind) or "")
    return {file for file in files if file and not file.startswith(TORCH)}


def varies(tensor: Tensor) -> bool:
    """Return True if the values are not all one number, within rounding; NaN counts as another number."""
    if not tensor.numel():
        return False
    low, high = (float(edge) for edge in tensor.detach().aminmax())
    if math.isfinite(low) and math.isfinite(high):
        return high - low > SAME * max(abs(low), abs(high))
    rest = tensor[~tensor.isnan()]
    return bool(rest.numel()) and (rest.numel() < tensor.numel() or low != high)


def sums(tensor: Tensor) -> Sums:
    """Return the sums of a tensor's finite values, sizes and squares: a fingerprint that ignores their order."""
    finite = torch.nan_to_num(tensor.double(), nan=0.0, posinf=0.0, neginf=0.0)
    return float(finite.sum()), float(finite.abs().sum()), float((finite * finite).sum())


def sums_agree(a: Sums, b: Sums, tolerance: float) -> bool:
    """Return True if two tensors with these sums may have the same values."""
    slack = 10 * max(tolerance, 1e-12)
    size, squares = max(a[1], 1e-300), max(a[2], 1e-300)
    return (
        abs(a[0] - b[0]) <= slack * size
        and abs(a[1] - b[1]) <= slack * size
        and abs(a[2] - b[2]) <= 2 * slack * squares
    )


def _same(found: Tensor, expected: Tensor, tolerance: float) -> bool:
    """Return True if two tensors of one size are the same but for the order of the expected one's axes.

    NaN equals NaN, unless there is nothing else.
    """
    flat = found.reshape(-1)
    if bool(flat.isnan().all()):
        return False
    allowed = tolerance * max(float(torch.nan_to_num(expected, nan=0.0, posinf=0.0, neginf=0.0).abs().max()), 1e-300)
    for order in itertools.permutations(range(expected.ndim)):
        other = expected.permute(order).reshape(-1)
        equal = (flat == other) | (flat.isnan() & other.isnan())
        if float(torch.where(equal, 0.0, (flat - other).abs()).max()) <= allowed:
            return True
    return False
