"""Whether an arm's answer may be believed: its distance from a float64 truth, beside what rounding allows."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.bench.comparison import Verification, Work
from harness.core.sizes import Size

# Two correct float32 programs round in different places; what they are off by differs by far less than this,
# and a fault is off by hundreds of times more (measured: 1.0 between eager and SDPA, 400 for the erf GELU).
FLOAT32_FACTOR = 4.0
# Rounding the weights alone is one of four roundings of that size: weight, input, product, sum with the stream.
# Independent errors add in squares: sqrt(4) = 2 (measured: 1.9 to 2.3). Twice that is allowed.
COARSE_FACTOR = 4.0
# A token may be chosen whose logit is below the best one's by rounding. One logit of many is off by more than their
# root mean square: ten times is beyond the largest of a million normal values twice over.
REGRET_FACTOR = 10.0
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
    """Judges answers by their distance from `truth`, the same work in float64.

    The control must be as near as float32 is by derivation (`bound`), every float32 arm within FLOAT32_FACTOR of
    the control. Arms named in `dtypes` compute in that type: they must be within COARSE_FACTOR of `coarse(dtype)`, the
    truth with nothing but its parameters rounded to it. `of` is what the truth is called.
    """

    truth: Callable[[], Tensor]
    control: str
    bound: float
    coarse: Callable[[torch.dtype], Tensor] | None = None
    dtypes: Mapping[str, torch.dtype] = field(default_factory=dict)
    of: str = "float64"
    _truth: Tensor | None = None
    _control_error: float = math.nan
    _coarse_errors: dict[torch.dtype, float] = field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """The verdict on one arm; the control's must be asked for first."""
        truth = self._known()
        answer = work.answer()
        error = relative_error(answer, truth)
        if name == self.control and math.isnan(self._control_error):
            self._control_error = error
        allowed, told = self._allowed(name)
        message = f"relative error {error:.1e} against {self.of}; {told}"
        if not error <= allowed:  # NaN is not
            message = f"{message}, so at most {allowed:.1e} is rounding; `pytest verifications/` finds what differs"
            return Verification("fail", message, error=error, allowed=allowed)
        return Verification("pass", message, error=error, allowed=allowed)

    def _known(self) -> Tensor:
        if self._truth is None:
            self._truth = self.truth()
            if self.coarse is not None:
                for dtype in set(self.dtypes.values()):
                    self._coarse_errors[dtype] = relative_error(self.coarse(dtype), self._truth)
        return self._truth

    def _allowed(self, name: str) -> tuple[float, str]:
        """How far from the truth that arm may be, and why."""
        if (dtype := self.dtypes.get(name)) is not None:
            rounded = self._coarse_errors[dtype]
            return COARSE_FACTOR * rounded, f"rounding the weights to {_short(dtype)} alone makes {rounded:.1e}"
        if name == self.control:
            return self.bound, f"float32 allows {self.bound:.1e}"
        # A control that is closer than float32 should be must not make it narrow for arms that are as near as that.
        allowed = max(FLOAT32_FACTOR * self._control_error, self.bound / FLOAT32_FACTOR)
        return allowed, f"the control's is {self._control_error:.1e}"


@dataclass(frozen=True)
class Generated:
    """What a generation gave, and what was counted on the way: None where it could not be seen."""

    ids: Tensor  # (B, prompt + new)
    logits: Tensor | None  # (B, new, V), of the positions that the new tokens were chosen from
    positions: int | None  # that went through the token embedding, a sequence


@dataclass
class SameTokens:
    """Judges greedy generation: each token the best by the truth, the logits of each step near float64's, and the
    positions counted.

    `truth` answers with the float64 logits (B, T, V) of ids (B, T). `positions` is how many an arm
    of that name processes by closed form: an arm that counts otherwise does not do what its name says.
    """

    truth: Callable[[Tensor], Tensor]
    control: str
    bound: float
    positions: Mapping[str, int]
    new_tokens: int
    _generated: Generated | None = None
    _control_error: float = math.nan

    def __call__(self, name: str, work: Work) -> Verification:
        """The verdict on one arm; the control's must be asked for first."""
        answer: Generated = work.answer()
        if self._generated is None:
            self._generated = answer
        expected = self.positions[name]
        if answer.positions not in (None, expected):
            counted = f"processed {answer.positions:,} positions, but {name} generation takes {expected:,}"
            return Verification("fail", f"{counted}: it does not do what its name says")
        if not torch.equal(answer.ids, self._generated.ids):
            step = int((answer.ids != self._generated.ids).any(0).nonzero()[0])
            return Verification("fail", f"token {step} differs from the control's greedy choice")
        if (regret := self._regret()) > REGRET_FACTOR * self.bound:
            return Verification("fail", f"a token is not the best one: the truth has another, {regret:.1e} above it")
        return self._near(name, answer, expected)

    def _near(self, name: str, answer: Generated, expected: int) -> Verification:
        """The verdict on the logits that the tokens were chosen from, where they could be seen."""
        told = ["the control's tokens" if name != self.control else "the truth's greedy tokens"]
        error = allowed = None
        if answer.logits is None:
            told.append("the logits of its steps could not be seen")
        else:
            error = relative_error(answer.logits, self._truth[:, -answer.logits.shape[1] :])
            if name == self.control and math.isnan(self._control_error):
                self._control_error = error
            # A control whose logits could not be seen leaves the derived bound for the others.
            floor = math.inf if math.isnan(self._control_error) else FLOAT32_FACTOR * self._control_error
            allowed = self.bound if name == self.control else min(self.bound, floor)
            told.append(f"the logits of its steps have relative error {error:.1e} against float64")
            if not error <= allowed:
                message = f"{'; '.join(told)}, and at most {allowed:.1e} is rounding"
                return Verification("fail", message, error=error, allowed=allowed)
        if answer.positions is None:
            return Verification("pass", "; ".join([*told, "positions could not be counted"]), {}, error, allowed)
        counts = {"positions": answer.positions, "positions_closed_form": expected}
        return Verification("pass", "; ".join(told), counts, error, allowed)

    def _regret(self) -> float:
        """How far the worst of the chosen tokens is below the best by the truth, in sizes of a logit."""
        assert self._generated is not None
        logits = self._truth[:, -self.new_tokens :]
        chosen = self._generated.ids[:, -self.new_tokens :, None]
        return float((logits.amax(-1) - logits.gather(-1, chosen)[..., 0]).max() / logits.square().mean().sqrt())

    @functools.cached_property
    def _truth(self) -> Tensor:
        assert self._generated is not None
        return self.truth(self._generated.ids[:, :-1])


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
