"""Findings for the differences that no variant matches: the place, and a relation fitted to the value there."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.observation import SAME
from harness.diagnosis.searches.forward import constant_fit
from harness.diagnosis.searches.forward.alignment import Alignment, Taps, largest_difference
from harness.diagnosis.searches.forward.matched import in_words
from harness.oracle.formula import At, Formula, visible


def unmatched_finding(
    alignment: Alignment, taps: Taps, anchor: str, layer: int | None, own_values: Mapping[str, Tensor]
) -> Finding:
    """Return the finding for an anchor that the subject does not reach with any variant.

    The place is the first one after the last value that agrees.
    """
    names = _places_up_to(list(taps), alignment.anchors, anchor)
    seen = {name: alignment.step_of(taps, name) for name in names}
    last = max((number for number, name in enumerate(names) if seen[name] is not None), default=-1)
    passed = alignment.last_right_step(taps, alignment.anchors.index(anchor))
    after = max((step for step in seen.values() if step is not None), default=passed)
    before = f"h.{layer - 1}" if layer else "embedding"
    where = names[last + 1] if last + 1 < len(names) else anchor
    fit = None
    if last < 0 and layer is not None and _differs(own_values.get(before), taps[before]):
        where = before  # the subject computed the right value there, and the next block reads another
    else:
        fit = _fit(alignment, taps, names[last + 1 :], layer, after)
    line = alignment.observed.line(alignment.first_unknown_step(taps, after), made=fit is not None and fit.fault != "")
    own = alignment.observed.logits if anchor == "head" else own_values.get(anchor)
    evidence = ("everything before it agrees with GPT-2", *_comparison(alignment, anchor, own, taps, after))
    return Finding(
        where=where,
        fault=fit.fault if fit else "",
        cause=fit.says if fit else NO_VARIANT,
        evidence="; ".join(text for text in evidence if text),
        source="" if line is None else str(line),
        text="" if line is None else line.text,
    )


def _places_up_to(order: list[str], anchors: list[str], anchor: str) -> list[str]:
    """Return the places after the previous anchor, up to this one."""
    number = anchors.index(anchor)
    before = anchors[number - 1] if number else None
    start = order.index(before) + 1 if before in order else 0
    return order[start : order.index(anchor) + 1]


def _differs(own: Tensor | None, expected: Tensor) -> bool:
    return own is not None and not largest_difference(own, expected) <= SAME * float(expected.abs().max())


def _fit(alignment: Alignment, taps: Taps, names: list[str], layer: int | None, after: int) -> constant_fit.Fit | None:
    """Return a constant with which one of the operations computes a value of the subject's."""
    right = alignment.size.head_width**-0.5
    for name in names:
        expected = taps[name]
        if not isinstance(expected, Tensor):
            continue
        found = [v for v in alignment.unknown_values(expected, after, taps) if bool(torch.isfinite(v).all())]
        operation = name.split(".", 2)[2] if layer is not None and name.count(".") > 1 else name
        fit = None
        if operation in ("ln_1", "ln_2", "ln_f"):
            at = At(Formula(alignment.size, alignment.weights), layer)
            fit = constant_fit.epsilon(operation, at, _norm_input(alignment, taps, name), found)
        elif operation == "attn.mix" and layer is not None:
            fit = constant_fit.scale(_attention_by_scale(taps, layer), found, right)
        if operation == "attn.scale":
            fit = constant_fit.scaled(expected, found, right)
        if bool(torch.isfinite(expected).all()):
            fit = fit or constant_fit.factor(name, expected, found) or constant_fit.offset(name, expected, found)
        if fit is not None:
            return fit
    return None


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


def _comparison(alignment: Alignment, anchor: str, own: Tensor | None, taps: Taps, after: int) -> tuple[str, str]:
    """Describe by how much, and at which rows, positions or channels, the subject's value differs."""
    expected = taps[anchor]
    if own is None:
        return "", constant_fit.where_it_differs(expected, alignment.unknown_values(expected, after, taps))
    if bool(torch.isfinite(own).all()):
        size = f"{in_words(anchor)} differs by {largest_difference(own, expected):.1e}"
    else:
        size = f"{in_words(anchor)} is not finite"
    return size, constant_fit.where_it_differs(expected, [own])
