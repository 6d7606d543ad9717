"""Measures of the interface: what a model answers when it is asked in the other way that it offers."""

from __future__ import annotations

import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.forward_call import targets_keyword
from harness.subjects.model import Generates, Subject, build_with_weights
from harness.suites.measure_registry import Reading, measure


@measure
def answer_without_targets(
    subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24, rows: int = 2
) -> Reading:
    """How far the logits that come without targets are from those that come with them, in float64, by position.

    A model may answer with the last position only when no targets are given (nanoGPT): it is held against the last
    one of the full answer. A skip for a model that takes no targets.
    """
    model = build_with_weights(subject, SIZES[size], state(size, weights), "float64")
    if targets_keyword(model.module) is None:
        raise MissingAbility(f"forward of {subject.name} takes no targets: there is one way to ask")
    ids, targets = batch(SIZES[size], "random", rows=rows, length=length)
    with torch.no_grad():
        full = model.logits_and_loss(ids, targets)[0]
        alone = model.logits_alone(ids)
    first = length - alone.shape[1]
    found = {
        f"position {first + t}": noise_verdict.distance(alone[:, t], full[:, first + t])
        / max(noise_verdict.largest(full), 1e-300)
        for t in range(alone.shape[1])
    }
    told = "the last position" if first else "every position"
    return Reading(found, "relative", {"hint": f"without targets it answers {told}"})


@measure
def temperature_zero(
    subject: Generates, *, size: str, weights: Weights = "probe", prompt_length: int = 5, new_tokens: int = 8
) -> Reading:
    """Whether generate(temperature=0) is greedy, or refused in words that name the temperature."""
    prompt, _ = batch(SIZES[size], "random", rows=2, length=prompt_length)
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    greedy = subject.generate(model, prompt, new_tokens, temperature=0.0)
    ask = getattr(subject, "at_temperature_zero", None)
    try:
        answer = greedy if ask is None else ask(model, prompt, new_tokens)
    except MissingAbility:
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        return Reading({"greedy, or refused in words": "temperature" in str(error).lower()}, details={"hint": told})
    differing = int((answer != greedy).sum())
    hint = f"{differing} tokens are not the likeliest" if differing else ""
    return Reading({"greedy, or refused in words": differing == 0}, details={"hint": hint})
