"""Every component twice: as the subject runs it, and alone, given what GPT-2 gives it (teacher forcing)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.oracle.formula import Formula
from harness.subjects.model import Model


def divergence(model: Model, ids: Tensor, weights: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far each component's answer is from GPT-2's, relative to its size, by place in execution order.

    `own`: as the subject runs, errors passed on; `alone`: given GPT-2's own input, so that only what is wrong in the
    component itself shows. Components that have no module of their own are left out.
    """
    formula = Formula(model.size, weights)
    formula(ids)
    inputs = _inputs(formula.taps, model.size.layers)
    own, alone = _answers(model, ids, inputs, forced=False), _answers(model, ids, inputs, forced=True)
    found: dict[str, dict[str, float]] = {}
    for place in ("embedding", *inputs, "head"):
        ways = {way: answers[place] for way, answers in (("own", own), ("alone", alone)) if place in answers}
        if ways:
            found[place] = {way: _gap(answer, formula.taps[place]) for way, answer in ways.items()}
    return found


def _inputs(taps: Mapping[str, Any], layers: int) -> dict[str, Tensor]:
    """What each component reads in GPT-2, in execution order."""
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


def _answers(model: Model, ids: Tensor, inputs: Mapping[str, Tensor], *, forced: bool) -> dict[str, Tensor]:
    """What each component answers, (B, T, C); with `forced`, to GPT-2's input.

    A block is fed once and its parts once more, so blocks are forced in one pass and their parts in another.
    """
    answers: dict[str, Tensor] = {}
    for blocks in (True, False) if forced else (True,):
        chosen = [place for place in inputs if not forced or (place.count(".") == 1) == blocks]
        answered: dict[str, Tensor] = {}
        read: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for place in chosen:
                with contextlib.suppress(Exception):  # it has no module of its own
                    given = {place: inputs[place]} if forced else {}
                    watching = model.watched({place: f"transformer.{place}"}, read=read, given=given, answered=answered)
                    stack.enter_context(watching)
            logits = model.logits(ids)
        answers |= answered
        if not forced:
            answers |= {"head": logits, **({"embedding": read["h.0"]} if "h.0" in read else {})}
    return {place: tensor.detach().double() for place, tensor in answers.items()}


def _gap(found: Tensor, expected: Tensor) -> float:
    if found.shape != expected.shape:
        return float("nan")
    return float((found - expected).abs().max() / expected.abs().max())
