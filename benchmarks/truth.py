"""Whether an arm's answer may be believed: its distance from a float64 truth, beside what rounding allows."""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.arms import Generated
from harness.compare import Finding, Work
from harness.size import Size

# Two correct float32 programs round in different places; what they are off by differs by far less than this,
# and a fault is off by hundreds of times more (measured: 1.0 between eager and SDPA, 400 for the erf GELU).
FLOAT32_FACTOR = 4.0
# Rounding the weights alone is one of four roundings of that size: weight, input, product, sum with the stream.
# Independent errors add in squares: sqrt(4) = 2 (measured: 1.9 to 2.3). Twice that is allowed.
COARSE_FACTOR = 4.0
_ROWS = 128


def relative_error(answer: Tensor, truth: Tensor) -> float:
    """|answer - truth| / |truth|, root mean square over all values; infinite where the shapes differ."""
    if answer.shape != truth.shape:
        return math.inf
    difference = scale = 0.0
    a, b = answer.detach().flatten(0, -2), truth.flatten(0, -2)
    for part, true in zip(torch.split(a, _ROWS), torch.split(b, _ROWS), strict=True):
        difference += float((part.double() - true).square().sum())
        scale += float(true.square().sum())
    return math.sqrt(difference / scale) if scale else math.inf


def float32_bound(size: Size) -> float:
    """What float32 may be off by, derived: u * sqrt(K/6) for each of the products on the way, added in squares.

    A sum of K random terms that is rounded at every step is off by u*sqrt(K/6), u = 2^-24; K is the longest sum,
    4C, and a model has four such products a block and the head. Kernels sum in lanes and stay well below.
    """
    return float(2.0**-24 * math.sqrt(4 * size.width / 6) * math.sqrt(4 * size.layers + 1))


def training_bound(size: Size) -> float:
    """The same after a step of AdamW, which divides each gradient by its own size.

    A gradient that is nearly zero has its sign from rounding and moves its weight by the full rate all the same.
    Measured at 124M: 5.7e-6 with a step, 7.9e-7 without; so ten times the bound is allowed.
    """
    return 10 * float32_bound(size)


def attention_bound(tokens: int) -> float:
    """The same for attention alone: two products, the longest sum over the tokens."""
    return float(2.0**-24 * math.sqrt(max(tokens, 64) / 6) * math.sqrt(2))


@dataclass
class Closeness:
    """Judges logits by their distance from `truth`, the same work in float64.

    The control must be as near as float32 is by derivation (`bound`), every float32 arm within FLOAT32_FACTOR of
    the control. Arms named in `dtypes` compute in that type: they must be within COARSE_FACTOR of `coarse`, the
    truth with nothing but its parameters rounded to it, and most of their matrix products must have run in it.
    `release` is called when the truth has been computed.
    """

    truth: Callable[[], Work]
    control: str
    bound: float
    coarse: Callable[[], Work] | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    release: Callable[[], None] = lambda: None
    _truth: Tensor | None = None
    _control_error: float = math.nan
    _coarse_error: float = math.nan

    def __call__(self, name: str, work: Work) -> Finding:
        """The verdict on one arm; the control's must be asked for first."""
        if self._truth is None:
            self._truth = self.truth().answer()
            if self.coarse is not None:
                self._coarse_error = relative_error(self.coarse().answer(), self._truth)
            self.release()
        with MatrixProducts() as products:
            answer = work.answer()
        error = relative_error(answer, self._truth)
        if name == self.control:
            self._control_error = error
        allowed, told = self._allowed(name)
        message = f"relative error {error:.1e} against float64; {told}"
        if not error <= allowed:  # NaN is not
            return Finding("fail", f"{message}, so at most {allowed:.1e} is rounding")
        dtype = self.dtypes.get(name)
        if dtype is not None and products.share(dtype) <= 0.5:
            return Finding("fail", f"is called {name}, but its matrix products ran in {products}")
        return Finding("pass", message)

    def _allowed(self, name: str) -> tuple[float, str]:
        """How far from the truth that arm may be, and why."""
        if name == self.control:
            return self.bound, f"float32 allows {self.bound:.1e}"
        if (dtype := self.dtypes.get(name)) is not None:
            told = f"rounding the weights to {_short(dtype)} alone makes {self._coarse_error:.1e}"
            return COARSE_FACTOR * self._coarse_error, told
        return FLOAT32_FACTOR * self._control_error, f"the control's is {self._control_error:.1e}"


@dataclass
class SameTokens:
    """Judges greedy generation: the control's tokens, logits of each step near float64's, and the positions counted.

    `truth` answers with the float64 logits (B, T, V) of ids (B, T). `positions` is how many an arm
    of that name processes by closed form: an arm that counts otherwise does not do what its name says.
    """

    truth: Callable[[Tensor], Work]
    control: str
    bound: float
    positions: Mapping[str, int]
    _generated: Generated | None = None
    _control_error: float = math.nan

    def __call__(self, name: str, work: Work) -> Finding:
        """The verdict on one arm; the control's must be asked for first."""
        answer: Generated = work.answer()
        if name == self.control:
            self._generated = answer
        assert self._generated is not None
        expected = self.positions[name]
        if answer.positions not in (None, expected):
            counted = f"processed {answer.positions:,} positions, but {name} generation takes {expected:,}"
            return Finding("fail", f"{counted}: it does not do what its name says")
        if not torch.equal(answer.ids, self._generated.ids):
            step = int((answer.ids != self._generated.ids).any(0).nonzero()[0])
            return Finding("fail", f"token {step} differs from the control's greedy choice")
        told = ["the control's tokens"] if name != self.control else []
        if answer.logits is None:
            told.append("the logits of its steps could not be seen")
        else:
            new_tokens = answer.logits.shape[1]
            error = relative_error(answer.logits, self._truth[:, -new_tokens:])
            if name == self.control:
                self._control_error = error
            # A control whose logits could not be seen leaves the derived bound for the others.
            floor = math.inf if math.isnan(self._control_error) else FLOAT32_FACTOR * self._control_error
            allowed = self.bound if name == self.control else min(self.bound, floor)
            told.append(f"the logits of its steps have relative error {error:.1e} against float64")
            if not error <= allowed:
                return Finding("fail", f"{'; '.join(told)}, and at most {allowed:.1e} is rounding")
        if answer.positions is None:
            return Finding("pass", "; ".join([*told, "positions could not be counted"]))
        counts = {"positions": answer.positions, "positions_closed_form": expected}
        return Finding("pass", "; ".join(told), counts)

    @functools.cached_property
    def _truth(self) -> Tensor:
        assert self._generated is not None
        truth: Tensor = self.truth(self._generated.ids[:, :-1]).answer()
        return truth


class MatrixProducts(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own __init_subclass__
    """Counts the matrix products that run while it is open, by the type that they compute in."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.counts: Counter[torch.dtype] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation, and note its last tensor's type if it is a product."""
        if func.__name__.split(".")[0] in ("mm", "addmm", "bmm", "baddbmm", "linear"):
            self.counts[[argument for argument in args if isinstance(argument, Tensor)][-1].dtype] += 1
        return func(*args, **(kwargs or {}))

    def share(self, dtype: torch.dtype) -> float:
        """The part of the products that ran in `dtype`; 0 when there were none."""
        return self.counts[dtype] / max(1, self.counts.total())

    def __str__(self) -> str:
        return ", ".join(f"{_short(dtype)} ({count})" for dtype, count in self.counts.most_common()) or "no type"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
