"""Uniform random numbers that are not decided until they are compared, as tensors and as numbers of Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

Comparison = Literal["below", "above"]
FLIPPED: dict[Comparison, Comparison] = {"below": "above", "above": "below"}


class Unseen(BaseException):
    """A random number is used in a way that is not followed. No Exception: the program must not catch it."""


class Decides(Protocol):
    """Decides on which side of a threshold a uniform number is."""

    def compare(self, number: int, threshold: float, comparison: Comparison) -> bool:
        """Return whether number `number` is below, or above, the threshold."""
        ...


@dataclass(frozen=True)
class UniformTensor:
    """What a tensor contains: scale · u + shift, or its logarithm, u being the uniform numbers `ids`.

    All have the shape of the tensor, in float64 and int64, on the CPU.
    """

    ids: Tensor
    scale: Tensor
    shift: Tensor
    is_log: bool = False

    @classmethod
    def drawn(cls, first: int, like: Tensor) -> UniformTensor:
        """Return new uniform numbers of the shape of `like`, the first with the number `first`."""
        ids = torch.arange(first, first + like.numel()).reshape(like.shape)
        return cls(ids, torch.ones(like.shape, dtype=torch.float64), torch.zeros(like.shape, dtype=torch.float64))

    def moved(self, move: Callable[[Tensor], Any]) -> list[UniformTensor]:
        """Return what an operation that only moves elements makes of it: one, or several parts."""
        parts = [move(part) for part in (self.ids, self.scale, self.shift)]
        if isinstance(parts[0], Tensor):
            parts = [[part] for part in parts]
        return [UniformTensor(ids, scale, shift, self.is_log) for ids, scale, shift in zip(*parts, strict=True)]

    def scaled(self, factor: Any) -> UniformTensor:
        """Return it times a known factor."""
        if self.is_log:
            raise Unseen("it multiplies the logarithm of a uniform number")
        factor = _known(factor)
        scale, shift = self.scale * factor, self.shift * factor
        return UniformTensor(self.ids.broadcast_to(scale.shape), scale, shift)

    def shifted(self, by: Any) -> UniformTensor:
        """Return it plus a known number."""
        by = _known(by)
        if self.is_log:  # log(x) + by = log(x · exp(by))
            scaled = UniformTensor(self.ids, self.scale, self.shift).scaled(by.exp())
            return UniformTensor(scaled.ids, scaled.scale, scaled.shift, True)
        shift = self.shift + by
        return UniformTensor(self.ids.broadcast_to(shift.shape), self.scale.broadcast_to(shift.shape), shift)

    def log(self) -> UniformTensor:
        """Return its logarithm."""
        if self.is_log:
            raise Unseen("it takes the logarithm of a logarithm of a uniform number")
        return UniformTensor(self.ids, self.scale, self.shift, True)

    def compared(self, known: Any, comparison: Comparison, decides: Decides) -> Tensor:
        """Return which elements are below, or above, the known ones; bool, in the shape of both together."""
        threshold = _known(known)
        if self.is_log:
            threshold = threshold.exp()
        ids, scale, shift, threshold = torch.broadcast_tensors(self.ids, self.scale, self.shift, threshold)
        answers = [
            decides.compare(number, t, comparison if a > 0 else FLIPPED[comparison])
            if a != 0
            else (b < value if comparison == "below" else b > value)
            for number, a, b, value, t in zip(
                ids.flatten().tolist(),
                scale.flatten().tolist(),
                shift.flatten().tolist(),
                threshold.flatten().tolist(),
                ((threshold - shift) / scale).flatten().tolist(),
                strict=True,
            )
        ]
        return torch.tensor(answers, dtype=torch.bool).reshape(ids.shape)

    def number(self, decides: Decides) -> UniformNumber:
        """Return the only element as a number of Python."""
        return self.number_of(decides)(int(self.ids))

    def number_of(self, decides: Decides) -> Callable[[int], UniformNumber]:
        """Return what makes a number of Python of each element's id."""
        if self.is_log:
            raise Unseen("it reads the logarithm of a uniform number")
        at = {n: place for place, n in enumerate(self.ids.flatten().tolist())}
        scale, shift = self.scale.flatten().tolist(), self.shift.flatten().tolist()
        return lambda number: UniformNumber(decides, number, scale[at[number]], shift[at[number]])


def _known(value: Any) -> Tensor:
    return torch.as_tensor(value).detach().to("cpu", copy=False).double()


class UniformNumber(float):
    """A number of Python, scale · u + shift, whose comparisons are decided by `decides`."""

    decides: Decides

    def __new__(cls, decides: Decides, number: int, scale: float = 1.0, shift: float = 0.0) -> UniformNumber:
        """Return the number; as a plain float, which no comparison uses, it is that of u = 1/2."""
        made = super().__new__(cls, scale / 2 + shift)
        made.decides, made.parts = decides, (number, scale, shift)
        return made

    parts: tuple[int, float, float]

    def as_tensor(self) -> UniformTensor:
        """Return it as a tensor without dimensions."""
        number, scale, shift = self.parts
        return UniformTensor(torch.tensor(number), torch.tensor(scale).double(), torch.tensor(shift).double())

    def _affine(self, factor: float, by: float) -> UniformNumber:
        number, scale, shift = self.parts
        return UniformNumber(self.decides, number, scale * factor, shift * factor + by)

    def _compared(self, other: Any, comparison: Comparison) -> Any:
        if isinstance(other, Tensor):
            return self.as_tensor().compared(other, comparison, self.decides)
        return bool(self.as_tensor().compared(float(other), comparison, self.decides))

    def __lt__(self, other: Any) -> Any:
        return self._compared(other, "below")

    def __le__(self, other: Any) -> Any:
        return self._compared(other, "below")

    def __gt__(self, other: Any) -> Any:
        return self._compared(other, "above")

    def __ge__(self, other: Any) -> Any:
        return self._compared(other, "above")

    def __mul__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Tensor) else self._affine(other, 0.0)

    def __truediv__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Tensor) else self._affine(1 / other if other else math.inf, 0.0)

    def __add__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Tensor) else self._affine(1.0, other)

    def __sub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Tensor) else self._affine(1.0, -other)

    def __rsub__(self, other: Any) -> Any:
        return NotImplemented if isinstance(other, Tensor) else self._affine(-1.0, other)

    def __neg__(self) -> Any:
        return self._affine(-1.0, 0.0)

    __rmul__ = __mul__
    __radd__ = __add__
    __hash__ = float.__hash__
