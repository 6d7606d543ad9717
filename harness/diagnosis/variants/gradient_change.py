"""Changes of the backward pass that are fitted to the gradients: a factor at an edge of the graph, or another's slope.

An edge is one input of one operation. What flows back through it is multiplied by a number: the same everywhere, or
one for each head, row or position. The gradients are linear in these numbers, so least squares finds them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.sizes import Size
from harness.diagnosis.searches.forward.where import ranges
from harness.diagnosis.variants.gradient_stop import INPUT_STOPS, GradientStop
from harness.oracle.formula import EPSILON, At, Formula, Operation, Replacement, operation_of
from harness.oracle.variants import Variant, systematic_variants, variants

OUTPUT = -1
STOPS = (*INPUT_STOPS, GradientStop("head", OUTPUT, "the logits"))
FITS = 1e-8  # of the gradient's largest value
SECONDS = 6.0  # of CPU time
HEADS = ("attn.scores", "attn.softmax", "attn.mix")  # operations whose inputs are (B, H, T, ...)
Gradients = Mapping[str, Tensor]


@dataclass(frozen=True)
class GradientChange:
    """An operation with the forward pass of GPT-2 and another backward pass, and what is said of it."""

    operation: str
    says: str
    function: Operation


@dataclass(frozen=True)
class TrainingPass:
    """The formula's pass over one batch, whose mean cross entropy is differentiated.

    `weights`: by published name, float64. `changes`: with which the formula computes what the subject computes in its
    forward pass. `ids`, `targets`: (B, T).
    """

    size: Size
    weights: Gradients
    changes: Sequence[Replacement]
    ids: Tensor
    targets: Tensor

    def loss(self, leaves: Gradients, more: Sequence[Replacement] = ()) -> Tensor:
        """Return the loss with further changes, as a function of other tensors in place of the weights."""
        logits = Formula(self.size, leaves, [*more, *self.changes])(self.ids)
        return F.cross_entropy(logits.flatten(0, 1), self.targets.flatten())

    def gradients(self, more: Sequence[Replacement] = (), names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Return the gradients by some weights, or by all, with further changes; zeros where none arrives."""
        wanted = list(self.weights) if names is None else list(names)
        leaves = {name: t.detach().clone().requires_grad_(name in wanted) for name, t in self.weights.items()}
        found = torch.autograd.grad(self.loss(leaves, more), [leaves[name] for name in wanted], allow_unused=True)
        return {
            name: torch.zeros_like(leaves[name]) if gradient is None else gradient
            for name, gradient in zip(wanted, found, strict=True)
        }


class _Scaled(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number or a tensor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return above * factor, None


class _Edges:
    """The formula's graph for one batch, with a tensor at every edge of one layer, or outside the blocks."""

    def __init__(self, training: TrainingPass, layer: int | None) -> None:
        self.at: dict[GradientStop, Tensor] = {}
        self.leaves = {name: tensor.detach().clone().requires_grad_() for name, tensor in training.weights.items()}
        replaced = {change.operation for change in training.changes if change.layer in (None, layer)}
        taps = [
            Replacement(name, self._tapped(name), layer)
            for name in dict.fromkeys(stop.operation for stop in STOPS if stop.is_in_block == (layer is not None))
            if name not in replaced
        ]
        loss = training.loss(self.leaves, taps)
        edges = list(self.at)
        above = torch.autograd.grad(loss, [self.at[edge] for edge in edges], retain_graph=True, allow_unused=True)
        self.above = {edge: gradient for edge, gradient in zip(edges, above, strict=True) if gradient is not None}

    def _tapped(self, name: str) -> Operation:
        right = operation_of(name)
        stops = [stop for stop in STOPS if stop.operation == name]

        def operation(at: At, *inputs: Any) -> Any:
            read = list(inputs)
            for stop in stops:
                if stop.number != OUTPUT:
                    read[stop.number] = self.at[stop] = inputs[stop.number].view_as(inputs[stop.number])
            found = right(at, *read)
            for stop in stops:
                if stop.number == OUTPUT:
                    found = self.at[stop] = found.view_as(found)
            return found

        return operation

    def share(self, edge: GradientStop, names: Sequence[str], mask: Tensor | float = 1.0) -> Tensor:
        """Return what flows through the edge, or through a part of it, into the gradients of some weights, as (n)."""
        found = torch.autograd.grad(
            self.at[edge], [self.leaves[name] for name in names], self.above[edge] * mask,
            retain_graph=True, allow_unused=True,
        )  # fmt: skip
        return torch.cat(
            [
                torch.zeros(self.leaves[name].numel(), dtype=torch.float64) if gradient is None else gradient.flatten()
                for name, gradient in zip(names, found, strict=True)
            ]
        )


def fitted_changes(
    training: TrainingPass, own: Gradients, right: Gradients, wrong: Sequence[str]
) -> Iterator[tuple[GradientChange, Replacement]]:
    """Yield changes that give the first wrong gradients, in every layer and in one: the caller compares all gradients.

    `own`: the subject's gradients. `right`: the formula's. `wrong`: the names of the weights whose gradients differ, in
    backward order.
    """
    deadline = time.process_time() + SECONDS
    first = [name for name in wrong if name.rpartition(".")[0] == wrong[0].rpartition(".")[0]]
    difference = torch.cat([(own[name] - right[name]).flatten() for name in first])
    allowed = FITS * max(float(right[name].abs().max()) for name in first)
    for layer in _layers(first[0], training.size):
        edges = _Edges(training, layer)
        for parts in (_whole, _by_head, _by_row, _by_position):
            for edge in edges.above:
                if time.process_time() > deadline:
                    return
                if (change := _fitted(edges, edge, parts, first, difference, allowed)) is not None:
                    for at in dict.fromkeys((None if edge.is_in_block else layer, layer)):
                        yield change, Replacement(change.operation, change.function, at)
    reached = {"block"}
    for variant in (*SLOPES, *variants(), *systematic_variants()):
        if time.process_time() > deadline:
            return
        if variant.operation in reached or variant.operation.startswith(("embedding", "blocks")):
            continue
        change = _slope_of(variant)
        for layer in _layers(first[0], training.size):
            in_block = GradientStop(variant.operation, 0, "").is_in_block
            if in_block != (layer is not None):
                continue
            if _gives(training, Replacement(change.operation, change.function, layer), own, first, allowed):
                for at in dict.fromkeys((None, layer)):
                    yield change, Replacement(change.operation, change.function, at)


def _layers(name: str, size: Size) -> list[int | None]:
    """Return the layers in which an edge may be the first before the gradient of a weight: its own and the next."""
    words = name.removeprefix("transformer.").split(".")
    if words[0] != "h":
        return [None] if words[0] == "ln_f" else [0, None]
    layer = int(words[1])
    return [layer, layer + 1 if layer + 1 < size.layers else None]


Parts = Callable[[Tensor, bool], tuple[str, list[Tensor]]]  # of an edge's value: what they are, and their masks


def _whole(value: Tensor, has_heads: bool) -> tuple[str, list[Tensor]]:
    return "", [torch.ones((), dtype=torch.float64)]


def _by_head(value: Tensor, has_heads: bool) -> tuple[str, list[Tensor]]:
    return "head", _slices(value, 1) if has_heads else []


def _by_row(value: Tensor, has_heads: bool) -> tuple[str, list[Tensor]]:
    return "row", _slices(value, 0)


def _by_position(value: Tensor, has_heads: bool) -> tuple[str, list[Tensor]]:
    return "position", _slices(value, value.ndim - 2)


def _slices(value: Tensor, axis: int) -> list[Tensor]:
    shape = [1] * value.ndim
    shape[axis] = value.shape[axis]
    return list(torch.eye(value.shape[axis], dtype=torch.float64).view(-1, *shape))


def _fitted(
    edges: _Edges, edge: GradientStop, parts: Parts, names: Sequence[str], difference: Tensor, allowed: float
) -> GradientChange | None:
    """Return the factors on parts of the edge that give the difference of these gradients; None if none do."""
    word, masks = parts(edges.at[edge], edge.operation in HEADS)
    if not masks:
        return None
    shares = torch.stack([edges.share(edge, names, mask) for mask in masks], 1)  # (n, parts)
    if not bool((shares.abs().amax(0) > allowed).all()):
        return None  # nothing of a part arrives: any factor would fit
    factors = torch.linalg.lstsq(shares, difference[:, None]).solution[:, 0] + 1.0
    if not bool((shares @ (factors - 1.0) - difference).abs().max() <= allowed):
        return None
    factors = torch.where((factors - factors.round(decimals=6)).abs() < 1e-9, factors.round(decimals=6), factors)
    whole = sum((mask * factor for mask, factor in zip(masks, factors, strict=True)), torch.zeros(()).double())
    right = operation_of(edge.operation)

    def scaled(at: At, *inputs: Any) -> Any:
        found = right(at, *(_Scaled.apply(x, whole) if n == edge.number else x for n, x in enumerate(inputs)))
        return _Scaled.apply(found, whole) if edge.number == OUTPUT else found

    return GradientChange(edge.operation, f"the gradient through {edge.input} {_said(word, factors)}", scaled)


def _said(word: str, factors: Tensor) -> str:
    """Return what is done to a gradient, in words."""
    if not word:
        return _how(float(factors[0]))
    kinds = [value for value in factors.unique().tolist() if abs(value - 1.0) > 1e-6]
    if len(kinds) > 3:
        return f"is multiplied by another number at each {word}"
    groups = []
    for kind in kinds:
        numbers = (factors == kind).nonzero().flatten().tolist()
        groups.append(f"{_how(kind)} at {word}{'s' * (len(numbers) > 1)} {ranges(numbers)}")
    return " and ".join(groups)


def _how(factor: float) -> str:
    words = {0.0: "is zero", -1.0: "is negated", 2.0: "is doubled"}
    return words.get(round(factor, 6), f"is {factor:.6g} times what it should be")


# Gradients that people write by hand, with a term left out.


def _norm_slope(name: str, *, mean: bool, variance: bool) -> Operation:
    """Return a LayerNorm through whose mean, or whose variance, no gradient flows."""

    def norm(at: At, x: Tensor) -> Tensor:
        centre = x.mean(-1, keepdim=True)
        square = x.var(-1, keepdim=True, correction=0)
        centre, square = centre.detach() if mean else centre, square.detach() if variance else square
        return (x - centre) * (square + EPSILON).rsqrt() * at[f"{name}.weight"] + at[f"{name}.bias"]

    return norm


def _softmax_slope(at: At, scores: Tensor) -> Tensor:
    exponentials = (scores - scores.detach().amax(-1, keepdim=True)).exp()
    return exponentials / exponentials.sum(-1, keepdim=True).detach()


SLOPES = (
    *(
        Variant("", name, f"{name} with its {words} taken for constant", _norm_slope(name, mean=m, variance=v))
        for name in ("ln_1", "ln_2", "ln_f")
        for words, m, v in (("mean", True, False), ("variance", False, True), ("mean and variance", True, True))
    ),
    Variant("", "attn.softmax", "the softmax with its sum taken for constant", _softmax_slope),
    Variant("", "mlp.activation", "the identity", lambda at, x: x),
)


def _slope_of(variant: Variant) -> GradientChange:
    """Return GPT-2's operation with the variant's backward pass."""
    right = operation_of(variant.operation)

    def function(at: At, *inputs: Any) -> Any:
        value, other = right(at, *inputs), variant.function(at, *inputs)
        if isinstance(value, tuple):
            return tuple(_Slope.apply(a.detach(), b) for a, b in zip(value, other, strict=True))
        if value.shape != other.shape:
            raise RuntimeError("of another shape")
        return _Slope.apply(value.detach(), other)

    says = f"the backward pass of {variant.operation} is that of another function: {variant.says}"
    return GradientChange(variant.operation, says, function)


class _Slope(torch.autograd.Function):
    """The first value, with the gradient of the second."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, other: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, above: Tensor) -> tuple[None, Tensor]:
        return None, above


def _gives(training: TrainingPass, change: Replacement, own: Gradients, names: Sequence[str], allowed: float) -> bool:
    """Return True if the formula with the change has the subject's gradients of some weights."""
    try:
        found = training.gradients([change], names)
    except (RuntimeError, IndexError, KeyError):
        return False
    return all(bool((found[name] - own[name]).abs().max() <= allowed) for name in names)
