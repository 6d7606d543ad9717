"""Variants with a constant that is fitted to the subject's values: an epsilon that no table has, or another scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.diagnosis.searches.forward import constant_fit
from harness.diagnosis.searches.forward.alignment import Alignment, Taps
from harness.oracle.formula import At, Formula, visible
from harness.oracle.variants import Variant

NORMS = ("ln_1", "ln_2", "ln_f")


def fitted_variants(alignment: Alignment, taps: Taps, layer: int | None, reached: int) -> Iterator[Variant]:
    """Yield the variants of the norms and of the scale that give a value of the subject's after the last right one."""
    right = alignment.size.head_width**-0.5
    passed = alignment.last_right_step(taps, reached)
    for name in places_between(taps, alignment.anchors, reached):
        expected = taps[name]
        if not isinstance(expected, Tensor):
            continue
        operation = name.split(".", 2)[2] if layer is not None and name.count(".") > 1 else name
        if operation not in (*NORMS, "attn.scale", "attn.mix"):
            continue
        found = [v for v in alignment.unknown_values(expected, passed, taps) if bool(torch.isfinite(v).all())]
        if operation in NORMS:
            at = At(Formula(alignment.size, alignment.weights), layer)
            yield from constant_fit.epsilon(operation, at, _norm_input(alignment, taps, name), found)
        elif operation == "attn.scale":
            yield from constant_fit.scaled(expected, found, right)
        elif f"h.{layer}.attn.split" in taps:
            assert layer is not None
            yield from constant_fit.scale(_attention_by_scale(taps, layer), found, right)


def places_between(taps: Taps, anchors: list[str], reached: int) -> list[str]:
    """Return the places after the last anchor reached, up to the next one, in execution order; the rest without it."""
    order = list(taps)
    before, anchor = anchors[reached - 1] if reached else None, anchors[reached]
    start = order.index(before) + 1 if before in taps else 0
    stop = order.index(anchor) + 1 if anchor in taps else len(order)
    return [name for name in order[start:stop] if name not in ("model", "blocks")]


def _norm_input(alignment: Alignment, taps: Taps, name: str) -> Tensor:
    """Return what a norm reads: the residual stream (B, T, C) at the last anchor before it."""
    order = list(taps)
    earlier = [anchor for anchor in order[: order.index(name)] if anchor in alignment.anchors]
    stream: Tensor = taps[earlier[-1]]
    return stream


def _attention_by_scale(taps: Taps, layer: int) -> Callable[[float], Tensor]:
    """Return a function from the factor on the scores to attention's output (B, H, T, D)."""
    q, k, v = taps[f"h.{layer}.attn.split"]
    scores = (q @ k.mT).masked_fill(~visible(q.shape[2], k.shape[2]), -math.inf)
    return lambda factor: (scores * factor).softmax(-1) @ v
