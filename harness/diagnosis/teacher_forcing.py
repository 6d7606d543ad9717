"""Teacher forcing: the error of each component as the subject runs, and alone, given GPT-2's own input."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.oracle.formula import Formula
from harness.subjects.model import Model


def divergence(model: Model, ids: Tensor, weights: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """Return each component's largest difference from GPT-2, relative to the largest value, in execution order.

    `own`: as the subject runs, with the errors of what comes before; `alone`: given GPT-2's own input, which shows only
    what is wrong in the component itself. Components that are no module of their own are left out.
    """
    formula = Formula(model.size, weights)
    formula(ids)
    inputs = _inputs(formula.taps, model.size.layers)
    by_run = {"own": _outputs(model, ids, inputs, forced=False), "alone": _outputs(model, ids, inputs, forced=True)}
    found: dict[str, dict[str, float]] = {}
    for place in ("embedding", *inputs, "head"):
        differences = {
            run: _relative_difference(outputs[place], formula.taps[place])
            for run, outputs in by_run.items()
            if place in outputs
        }
        if differences:
            found[place] = differences
    return found


def _inputs(taps: Mapping[str, Any], layers: int) -> dict[str, Tensor]:
    """Return what each component reads in GPT-2, (B, T, C), in execution order."""
    inputs: dict[str, Tensor] = {}
    for layer in range(layers):
        h = f"h.{layer}"
        stream = taps["embedding"] if layer == 0 else taps[f"h.{layer - 1}"]
        inputs |= {
            f"{h}.ln_1": stream,
            f"{h}.attn": taps[f"{h}.ln_1"],
            f"{h}.ln_2": taps[f"{h}.residual.attn"],
            f"{h}.mlp": taps[f"{h}.ln_2"],
            h: stream,
        }
    return {**inputs, "ln_f": taps[f"h.{layers - 1}"]}


def _outputs(model: Model, ids: Tensor, inputs: Mapping[str, Tensor], *, forced: bool) -> dict[str, Tensor]:
    """Return each component's output (B, T, C); with `forced`, for GPT-2's input.

    Blocks are forced in one pass and their parts in another, because a forced block's parts read what it gives them.
    """
    outputs: dict[str, Tensor] = {}
    for blocks in (True, False) if forced else (True,):
        chosen = [place for place in inputs if not forced or (place.count(".") == 1) == blocks]
        answered: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for place in chosen:
                with contextlib.suppress(Exception):  # the component is no module of its own
                    given = {place: inputs[place]} if forced else {}
                    watched = model.watched({place: f"transformer.{place}"}, read=read, given=given, answered=answered)
                    stack.enter_context(watched)
            logits = model.logits(ids)
        outputs |= answered
        if not forced:
            outputs |= {"head": logits, **({"embedding": read["h.0"]} if "h.0" in read else {})}
    return {place: tensor.detach().double() for place, tensor in outputs.items()}


def _relative_difference(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max())
