"""Measures of the backward pass of a layer of experts: against finite differences, and of what took no part."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.seeds import seeded
from harness.measures.experts.mixture import layer_of, mixture, tokens
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.protocols import MixesExperts
from harness.suites.measure_registry import Reading, measure

# Of a central difference of the fourth order. The step is so small that no choice of an expert and hardly a ReLU turns:
# rounding is 1e-16 / STEP, and one of 1e-9 relative is left.
STEP = 1e-7
STEPS = ((-2, 1 / 12), (-1, -2 / 3), (1, 2 / 3), (2, -1 / 12))
DIRECTIONS = 3  # the best one counts, so that a ReLU that turns within the step is no error
MARGIN = 0.1  # between the logits of the last expert that is chosen and the first that is not, of every token
CANDIDATES = 400
WRONG = 1e-6  # relative; right programs are within 1e-8
NO_SLOPE = 1e-9  # of the largest slope; rounding is 1e-13


@measure
def expert_gradients(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return the relative error of the gradients of input, router and experts against finite differences.

    Each is a slope of a random sum of the outputs, along a random direction of the parameters of that part. A part
    whose slope is 0 is not learnt at all: its error is infinite. An expert that did not compute a token must have no
    gradient from it.
    """
    layer = layer_of(subject, size, experts=experts, per_token=per_token, own=True)
    x = _clear_tokens(layer, layer.per_token or per_token).requires_grad_()
    generator = torch.Generator().manual_seed(seeded(5))
    weights = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    parts: dict[str, Sequence[Tensor]] = {
        "the input": [x],
        "the router": layer.router_parameters,
        "the experts": list({id(p.parameter): p.parameter for one in layer.expert_parameters for p in one}.values()),
    }
    every = [tensor for tensors in parts.values() for tensor in tensors]
    total = (layer(x) * weights).sum()
    gradients = dict(zip(map(id, every), torch.autograd.grad(total, every, allow_unused=True), strict=True))
    slopes: dict[str, list[tuple[float, float]]] = {place: [] for place in parts}
    for place, tensors in parts.items():
        for _ in range(DIRECTIONS):
            directions = [torch.randn(t.shape, generator=generator, dtype=t.dtype).to(t.device) for t in tensors]
            by_autograd = sum(
                float((gradient * direction).sum())
                for tensor, direction in zip(tensors, directions, strict=True)
                if (gradient := gradients[id(tensor)]) is not None
            )
            slopes[place].append((by_autograd, _slope(layer, x, weights, tensors, directions)))
    scale = max(abs(slope) for each in slopes.values() for _, slope in each)
    best = {place: min(each, key=lambda pair: _error(pair, scale)) for place, each in slopes.items()}
    found = {place: _error(pair, scale) for place, pair in best.items()}
    answers = {place: _said(*best[place], scale) for place, error in found.items() if not error < WRONG}
    found["experts that did not compute"] = _idle_gradient(layer)
    if found["experts that did not compute"]:
        answers["experts that did not compute"] = "they have a gradient that is not 0"
    hint = "; ".join(f"{place}: {text}" for place, text in answers.items())
    return Reading(found, "", {"answers": answers, **({"hint": hint, "line": layer.line} if hint else {})})


def _clear_tokens(layer: ExpertLayer, k: int) -> Tensor:
    """Return tokens (2, 6, C) whose choice of experts is clear, so that no small step changes it."""
    x = tokens(layer, rows=1, length=CANDIDATES)[0]
    with torch.no_grad():
        ordered = layer.router_logits(x).sort(dim=-1, descending=True).values
    clear = ordered[:, k - 1] - ordered[:, k] > MARGIN if k < layer.experts else ordered[:, 0] == ordered[:, 0]
    return x[clear.nonzero().flatten()[:12]].view(2, 6, -1).clone()


def _error(pair: tuple[float, float], scale: float) -> float:
    own, slope = pair
    return abs(own - slope) / abs(slope) if abs(slope) > NO_SLOPE * scale else math.inf


@torch.no_grad()
def _slope(
    layer: ExpertLayer, x: Tensor, weights: Tensor, tensors: Sequence[Tensor], directions: Sequence[Tensor]
) -> float:
    """Return the slope along the directions by finite differences."""
    before = [tensor.clone() for tensor in tensors]
    slope = 0.0
    for step, factor in STEPS:
        for tensor, start, direction in zip(tensors, before, directions, strict=True):
            tensor.copy_(start + step * STEP * direction)
        slope += factor * float((layer(x) * weights).sum()) / STEP
    for tensor, start in zip(tensors, before, strict=True):
        tensor.copy_(start)
    return slope


def _said(own: float, slope: float, scale: float) -> str:
    if abs(slope) <= NO_SLOPE * scale:
        return "the output does not change with it, so that it is never learnt"
    if own == 0:
        return "no gradient, although the output changes with it: it is detached"
    return f"{own / slope:.4g} of the slope that finite differences show"


def _idle_gradient(layer: ExpertLayer) -> float:
    """Return 0 if the experts that did not compute a token have no gradient from it, else infinity.

    A gradient of zeros counts as none.
    """
    x = tokens(layer, rows=1, length=1)
    with torch.no_grad():
        used = mixture(layer, x).used[0].tolist()
    layer.module.zero_grad()
    y = layer(x)
    if not y.requires_grad:  # nothing computed this token; who computes it is another check's affair
        return 0.0
    y.square().sum().backward()
    gradients = [
        part.of(part.parameter.grad)
        for number, one in enumerate(layer.expert_parameters)
        for part in one
        if not used[number] and part.parameter.grad is not None
    ]
    return math.inf if any(bool(gradient.abs().max() > 0) for gradient in gradients) else 0.0
