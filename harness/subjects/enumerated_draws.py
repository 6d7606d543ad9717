"""Enumeration of all random outcomes of a program that draws with torch: each with its exact probability."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from harness.subjects.uniform_numbers import FLIPPED, Comparison, UniformNumber, UniformTensor, Unseen

T = TypeVar("T", bound=Hashable)
NEGLIGIBLE = 1e-14  # of probability: a branch that rounding makes

COMPARISONS: dict[str, Comparison] = {
    **dict.fromkeys(("lt", "le", "__lt__", "__le__", "less", "less_equal"), "below"),
    **dict.fromkeys(("gt", "ge", "__gt__", "__ge__", "greater", "greater_equal"), "above"),
}
PRODUCTS = frozenset(("mul", "__mul__", "__rmul__", "multiply"))
QUOTIENTS = frozenset(("div", "__truediv__", "true_divide", "divide"))
SUMS = frozenset(("add", "__add__", "__radd__"))
DIFFERENCES = frozenset(("sub", "__sub__", "subtract"))
REVERSED_DIFFERENCES = frozenset(("rsub", "__rsub__"))
MOVES = frozenset(
    ("__getitem__", "view", "reshape", "squeeze", "unsqueeze", "expand", "expand_as", "flatten", "t", "transpose")
) | {
    "permute",
    "clone",
    "detach",
    "contiguous",
    "select",
    "narrow",
    "unbind",
    "split",
    "chunk",
    "view_as",
    "index_select",
}
CASTS = frozenset(("to", "float", "double", "cpu", "cuda", "type_as", "type"))
# What reads no value.
READS = frozenset(
    (
        "size",
        "dim",
        "numel",
        "__len__",
        "stride",
        "is_floating_point",
        "data_ptr",
        "__get__",
        "element_size",
        "ndimension",
    )
)
LIKE_DRAWS = frozenset(("rand_like", "uniform_", "rand"))
OTHER_DRAWS = frozenset(
    ("normal_", "randn", "randn_like", "normal", "randint", "randint_like", "randperm", "random_", "geometric_")
) | {"log_normal_", "cauchy_", "poisson", "binomial", "dropout"}


@dataclass(frozen=True)
class Enumeration:
    """The probability of each outcome, and the number of runs. `unseen`: why they are not all, "" if they are."""

    probabilities: dict[Any, float] = field(default_factory=dict)
    runs: int = 0
    unseen: str = ""


def enumerate_outcomes(run: Callable[[], T], *, most_runs: int) -> Enumeration:
    """Return the exact distribution of what `run` returns, by following every branch of its random draws.

    Each draw of a token (`torch.multinomial`, a race of exponentials) is followed for every token, with its
    probability. A uniform number stays undecided until it is compared: both sides are followed, and their
    probabilities are read off the number that it is compared with. A program that uses random numbers in another way,
    or has more than `most_runs` outcomes, is not enumerated: `unseen` says why.
    """
    pending: list[list[int]] = [[]]
    found: dict[T, float] = {}
    runs = 0
    before = random.getstate()
    while pending:
        if runs == most_runs:
            return Enumeration(runs=runs, unseen=f"it has more than {most_runs} random outcomes")
        draws = _FollowedDraws(pending.pop())
        try:
            with draws, mock.patch.object(random, "random", draws.python_number):
                outcome = run()
        except Unseen as unseen:
            return Enumeration(runs=runs, unseen=str(unseen))
        if draws.unseen or random.getstate() != before:
            return Enumeration(runs=runs, unseen=draws.unseen or "it draws from Python's random numbers")
        found[outcome] = found.get(outcome, 0.0) + draws.probability
        pending += draws.alternatives
        runs += 1
    return Enumeration(found, runs)


class _FollowedDraws(TorchFunctionMode):
    """One run: its first decisions are given, the others take the first possible branch and note the others."""

    def __init__(self, given: Sequence[int]) -> None:
        super().__init__()
        self.given = given
        self.decisions: list[int] = []
        self.alternatives: list[list[int]] = []
        self.probability = 1.0
        self.unseen = ""
        self.intervals: list[tuple[float, float]] = []  # of each uniform number: where it still can be
        self._uniform: dict[int, tuple[Tensor, UniformTensor]] = {}  # by id; the tensor is kept alive with it
        self._exponential: dict[int, Tensor] = {}
        self._race: dict[int, tuple[Tensor, Tensor]] = {}

    def decide(self, weights: Sequence[float]) -> int:
        """Return which branch this run follows; `weights` are proportional to the branches' probabilities."""
        total = sum(weights)
        possible = [n for n, weight in enumerate(weights) if weight > NEGLIGIBLE * total]
        at = len(self.decisions)
        if at < len(self.given):
            chosen = self.given[at]
        else:
            chosen, *others = possible
            self.alternatives += [[*self.decisions, other] for other in others]
        self.decisions.append(chosen)
        self.probability *= weights[chosen] / total
        return chosen

    def compare(self, number: int, threshold: float, comparison: Comparison) -> bool:
        """Return whether uniform number `number` is on that side of the threshold, and keep it there."""
        low, high = self.intervals[number]
        if threshold != threshold:  # NaN compares false
            return False
        cut = min(max(threshold, low), high)
        side = self.decide([cut - low, high - cut])
        self.intervals[number] = (low, cut) if side == 0 else (cut, high)
        return (side == 0) == (comparison == "below")

    def python_number(self) -> UniformNumber:
        """Return a uniform number as `random.random` does."""
        self.intervals.append((0.0, 1.0))
        return UniformNumber(self, len(self.intervals) - 1)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name == "multinomial":
            return self._multinomial(function, args, kwargs)
        if name == "bernoulli":
            return self._bernoulli(function, args, kwargs)
        if name in LIKE_DRAWS:
            return self._draw_uniform(name, function, args, kwargs)
        if name == "exponential_":
            answer = function(*args, **kwargs)
            self._exponential[id(answer)] = answer
            return answer
        if name in OTHER_DRAWS and not (name == "dropout" and not kwargs.get("training", True)):
            self._refuse(f"it draws with {name}")
        if self._race or self._exponential:
            raced = self._of_race(name, function, args, kwargs)
            if raced is not None:
                return raced
        if (self._uniform or self.intervals) and self._has_uniform(args, kwargs):
            return self._of_uniform(name, function, args, kwargs)
        return function(*args, **kwargs)

    # ---- tokens

    def _multinomial(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        answer: Tensor = function(*args, **kwargs)  # for its errors, its shape and its dtype
        if answer.shape[-1] != 1:
            self._refuse("it draws several tokens at once")
        weights = args[0] if args else kwargs["input"]
        return self._tokens(weights.reshape(-1, weights.shape[-1])).reshape(answer.shape).to(answer.device)

    def _bernoulli(self, function: Any, args: Any, kwargs: Any) -> Tensor:
        answer: Tensor = function(*args, **kwargs)
        chosen = [self.decide([1 - p, p]) for p in args[0].flatten().tolist()]
        return torch.tensor(chosen).reshape(answer.shape).to(answer)

    def _tokens(self, weights: Tensor) -> Tensor:
        return torch.tensor([self.decide(row) for row in weights.double().tolist()])

    def _of_race(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        """Follow `(probabilities / exponential numbers).argmax()`, which draws a token; None for another operation."""
        if name in QUOTIENTS | {"div_"} and len(args) > 1 and id(args[1]) in self._exponential:
            weights = args[0].clone()
            answer = function(*args, **kwargs)
            self._race[id(answer)] = (answer, weights)
            return answer
        if args and id(args[0]) in self._race:
            weights = self._race[id(args[0])][1]
            if name != "argmax":
                self._refuse(f"it uses exponential numbers in {name}")
            answer = function(*args, **kwargs)
            return self._tokens(weights.reshape(-1, weights.shape[-1])).reshape(answer.shape)
        return None

    # ---- uniform numbers

    def _draw_uniform(self, name: str, function: Any, args: Any, kwargs: Any) -> Tensor:
        if name == "uniform_" and (*args[1:], *(kwargs.get(k, d) for k, d in (("from", 0), ("to", 1)))) not in (
            (0, 1),
            (0, 1, 0, 1),
        ):
            self._refuse("it draws uniform numbers that are not between 0 and 1")
        answer: Tensor = function(*args, **kwargs)
        first = len(self.intervals)
        self.intervals += [(0.0, 1.0)] * answer.numel()
        return self._tag(answer, UniformTensor.drawn(first, answer))

    def _tag(self, answer: Tensor, uniform: UniformTensor) -> Tensor:
        self._uniform[id(answer)] = (answer, uniform)
        return answer

    def _has_uniform(self, args: Any, kwargs: Any) -> bool:
        """Return True if an argument is a uniform number, or a list that has one: as tree_leaves, in a tenth of it."""
        for argument in (*args, *kwargs.values()):
            members = argument if isinstance(argument, list | tuple) else (argument,)
            if any(id(each) in self._uniform or isinstance(each, UniformNumber) for each in members):
                return True
        return False

    def _is_uniform(self, leaf: Any) -> bool:
        return isinstance(leaf, UniformNumber) or id(leaf) in self._uniform

    def _as_uniform(self, leaf: Any) -> UniformTensor:
        return leaf.as_tensor() if isinstance(leaf, UniformNumber) else self._uniform[id(leaf)][1]

    def _of_uniform(self, name: str, function: Any, args: Any, kwargs: Any) -> Any:
        if name in READS:
            return function(*args, **kwargs)
        if name in ("item", "tolist"):
            uniform = self._as_uniform(args[0])
            return uniform.number(self) if name == "item" else tree_map(uniform.number_of(self), uniform.ids.tolist())
        if name in CASTS:
            return self._tag(function(*args, **kwargs), self._as_uniform(args[0]))
        if name in MOVES:
            move = functools.partial(self._moved, function, args, kwargs)
            answer = function(*args, **kwargs)
            return move(answer)
        if name == "log":
            return self._tag(function(*args, **kwargs), self._as_uniform(args[0]).log())
        if name == "neg" or name == "__neg__":
            return self._tag(function(*args, **kwargs), self._as_uniform(args[0]).scaled(-1.0))
        if name in ("searchsorted", "bucketize"):
            return self._cell(name, args, kwargs)
        if len(args) == 2 and not kwargs and (answer := self._of_two(name, function, *args)) is not None:
            return answer
        return self._refuse(f"it uses a uniform number in {name}")

    def _moved(self, function: Any, args: Any, kwargs: Any, answer: Any) -> Any:
        if self._is_uniform(args[0]) and not self._has_uniform(args[1:], kwargs):
            parts = self._as_uniform(args[0]).moved(lambda part: function(part, *args[1:], **kwargs))
            if isinstance(answer, Tensor):
                return self._tag(answer, parts[0])
            return type(answer)(self._tag(a, p) for a, p in zip(answer, parts, strict=True))
        return self._refuse("it picks a value by a uniform number")

    def _of_two(self, name: str, function: Any, a: Any, b: Any) -> Any:
        """Return the result of an operation of a uniform number and a known one; None if it is not followed."""
        if self._is_uniform(a) and self._is_uniform(b):
            return None
        first = self._is_uniform(a)
        uniform, known = (self._as_uniform(a), b) if first else (self._as_uniform(b), a)
        if name in COMPARISONS:
            comparison = COMPARISONS[name] if first else FLIPPED[COMPARISONS[name]]
            return uniform.compared(known, comparison, self)
        changed: UniformTensor | None = None
        if name in PRODUCTS:
            changed = uniform.scaled(known)
        elif name in QUOTIENTS and first:
            changed = uniform.scaled(1.0 / known)
        elif name in SUMS:
            changed = uniform.shifted(known)
        elif (name in DIFFERENCES and first) or (name in REVERSED_DIFFERENCES and not first):
            changed = uniform.shifted(-known)
        elif name in DIFFERENCES | REVERSED_DIFFERENCES:
            changed = uniform.scaled(-1.0).shifted(known)
        return None if changed is None else self._tag(function(a, b), changed)

    def _cell(self, name: str, args: Any, kwargs: Any) -> Any:
        edges, values = args[:2] if name == "searchsorted" else args[1::-1]
        if not self._is_uniform(values) or self._is_uniform(edges) or edges.ndim != 1:
            return self._refuse(f"it uses a uniform number in {name}")
        uniform = self._as_uniform(values)
        above = uniform.moved(lambda part: part[..., None])[0].compared(edges, "above", self)
        return above.sum(-1)

    def _refuse(self, why: str) -> Any:
        self.unseen = why
        raise Unseen(why)
