"""Measures of the backward pass: linear in what comes from above, and the slope that finite differences show."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.conditions.answers_kept import built
from harness.oracle import noise_verdict
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

STEP = 1e-4  # of a finite difference, in standard deviations of each parameter; see `slopes`

Gradients = dict[str, Tensor]


@measure
def backward_nonlinearity(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return how far gradients are from linear, relative to the largest one, in float64.

    The gradient of c · loss is c times that of the loss; two backward passes add; the loss over two rows is the mean of
    the losses of each; and the gradient of a weighted sum of logits is the sum of the gradients of its parts, by rows,
    by positions and by tokens of the vocabulary.
    """
    model = built(subject, size, "float64")
    ids, targets = batch(SIZES[size], "random", rows=2, length=9, seed=seed)
    whole = _of_loss(model, ids, targets)
    found = {
        f"{c:g} · loss": _gap(_of_loss(model, ids, targets, factor=c), {n: c * g for n, g in whole.items()})
        for c in (0.25, 3.0, -1.0, 0.0)
    }
    found["two backward passes"] = _gap(_of_loss(model, ids, targets, times=2), {n: 2 * g for n, g in whole.items()})
    rows = [_of_loss(model, ids[r : r + 1].contiguous(), targets[r : r + 1].contiguous()) for r in range(2)]
    found["the mean of two rows"] = _gap(_sum(*rows), {n: 2 * g for n, g in whole.items()})
    found |= _of_parts(model, ids, _weights(model, ids, seed))
    return Reading(found, "relative")


def _of_parts(model: Model, ids: Tensor, weights: Tensor) -> dict[str, float]:
    """Return the gaps between the gradient of a weighted sum of logits and the sum of those of its parts."""
    whole = _of_logits(model, ids, weights)
    found = {}
    for name, mask in (
        ("logits, one row masked", torch.arange(len(ids))[:, None, None] == 0),
        ("logits, some positions masked", (torch.arange(ids.shape[1]) % 3 == 0)[None, :, None]),
        ("logits, some tokens masked", (torch.arange(weights.shape[-1]) % 2 == 0)[None, None, :]),
    ):
        parts = _of_logits(model, ids, weights * mask), _of_logits(model, ids, weights * ~mask)
        found[name] = _gap(_sum(*parts), whole)
    scaled = {name: -5.0 * gradient for name, gradient in whole.items()}
    found["-5 · a weighted sum of logits"] = _gap(_of_logits(model, ids, -5.0 * weights), scaled)
    return found


@measure
def slopes(subject: Subject, *, size: str, seed: int = 0, directions: int = 6) -> Reading:
    """Return the distance of gradients from finite differences along random directions, relative, in float64.

    Of the loss, and of a random weighted sum of the logits, whose gradient from above is not the loss's: a backward
    pass that is written by hand may be right for one of them only. Central differences of step h are wrong by h²; with
    Richardson's step (4 d(h) - d(2h)) / 3 by h⁴.
    """
    model = built(subject, size, "float64")
    ids, targets = batch(SIZES[size], "random", rows=2, length=9, seed=seed)
    weights = _weights(model, ids, seed)
    parameters = {name: p for name, p in model.module.named_parameters() if p.requires_grad}
    found: dict[str, float] = {}
    draw = functools.partial(torch.randn, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    for name, function, gradient in (
        ("the loss", lambda: model.loss(ids, targets), _of_loss(model, ids, targets)),
        ("a weighted sum of logits", lambda: (model.logits(ids) * weights).sum(), _of_logits(model, ids, weights)),
    ):
        for number in range(directions):
            direction = {
                n: draw(p.shape).to(p.device) * p.detach().std().nan_to_num(1.0) for n, p in parameters.items()
            }
            expected = sum(float((gradient[n] * direction[n]).sum()) for n in parameters)
            scale = sum(float((gradient[n] * direction[n]).pow(2).sum()) for n in parameters) ** 0.5
            near = _slope(function, parameters, direction, STEP)
            far = _slope(function, parameters, direction, 2 * STEP)
            found[f"{name}, direction {number}"] = abs((4 * near - far) / 3 - expected) / max(scale, 1e-300)
    return Reading(found, "relative")


def _slope(
    function: Callable[[], Tensor], parameters: Mapping[str, Tensor], direction: Mapping[str, Tensor], step: float
) -> float:
    """Return the central difference of the function along a direction of the parameters; put these back."""
    values = []
    kept = {name: p.detach().clone() for name, p in parameters.items()}
    for sign in (1.0, -1.0):
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter.copy_(kept[name] + sign * step * direction[name])
        # With gradients recorded, as in the pass that is differentiated: without them a model may take another way.
        values.append(float(function().detach()))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(kept[name])
    return (values[0] - values[1]) / (2 * step)


def _weights(model: Model, ids: Tensor, seed: int) -> Tensor:
    """Return random weights (B, T, V) for a sum of logits."""
    shape = (*ids.shape, model.size.vocab_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + 1), dtype=torch.float64)


def _of_loss(model: Model, ids: Tensor, targets: Tensor, *, factor: float = 1.0, times: int = 1) -> Gradients:
    """Return the gradients of factor · loss, of so many backward passes that add up."""
    model.module.zero_grad(set_to_none=True)
    for _ in range(times):
        (factor * model.loss(ids, targets)).backward()
    return _taken(model)


def _of_logits(model: Model, ids: Tensor, weights: Tensor) -> Gradients:
    """Return the gradients of the sum of weights · logits."""
    model.module.zero_grad(set_to_none=True)
    (model.logits(ids) * weights).sum().backward()
    return _taken(model)


def _taken(model: Model) -> Gradients:
    """Return the gradients of the parameters, zeros where there is none, and clear them."""
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in model.module.named_parameters()
    }
    model.module.zero_grad(set_to_none=True)
    return found


def _sum(*gradients: Gradients) -> Gradients:
    return {name: torch.stack([each[name] for each in gradients]).sum(0) for name in gradients[0]}


def _gap(found: Gradients, expected: Gradients) -> float:
    """Return the largest distance over all parameters, relative to the largest gradient expected (1 if that is 0)."""
    scale = max(noise_verdict.max_abs(gradient) for gradient in expected.values()) or 1.0
    gap = 0.0
    for name, gradient in found.items():
        gap = noise_verdict.maximum(gap, noise_verdict.distance(gradient, expected[name]) / scale)
    return gap
