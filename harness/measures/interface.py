"""Measures of the interface: forward without targets, and a temperature of zero."""

from __future__ import annotations

import torch

from harness.core.error_text import error_location
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_call import targets_keyword, why_no_targets
from harness.subjects.protocols import Generates, Subject
from harness.suites.measure_registry import Reading, measure

AT_ZERO = "greedy, or an error that names the temperature"


@measure
def answer_without_targets(
    subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24, rows: int = 2
) -> Reading:
    """Return the relative distance of the logits without targets from those with targets, in float64, by position.

    Without targets a model may return the last position only (nanoGPT); it is compared with the last position of the
    full logits. Raises MissingAbility if `forward` takes no targets.
    """
    model = build_with_weights(subject, SIZES[size], state(size, weights), "float64")
    if targets_keyword(model.module) is None:
        raise MissingAbility(
            f"forward of {subject.name} {why_no_targets(model.module)}, so there is nothing to compare"
        )
    ids, targets = batch(SIZES[size], "random", rows=rows, length=length)
    with torch.no_grad():
        full = model.logits_and_loss(ids, targets)[0]
        alone = model.logits_alone(ids)
    first = length - alone.shape[1]
    found = {
        f"position {first + t}": noise_verdict.distance(alone[:, t], full[:, first + t])
        / max(noise_verdict.max_abs(full), 1e-300)
        for t in range(alone.shape[1])
    }
    positions = "the last position" if first else "every position"
    return Reading(found, "relative", {"hint": f"without targets it returns {positions}"})


@measure
def temperature_zero(
    subject: Generates, *, size: str, weights: Weights = "probe", prompt_length: int = 5, new_tokens: int = 8
) -> Reading:
    """Return True if generate(temperature=0) is greedy, or refuses with an error that mentions the temperature."""
    prompt, _ = batch(SIZES[size], "random", rows=2, length=prompt_length)
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    greedy = subject.generate(model, prompt, new_tokens, temperature=0.0)
    # An adapter answers temperature 0 with top_k=1 if it must; this calls the subject with the temperature as it is.
    at_zero = getattr(subject, "at_temperature_zero", None)
    try:
        answer = greedy if at_zero is None else at_zero(model, prompt, new_tokens)
    except MissingAbility:
        raise
    except Exception as error:
        place = error_location(error)
        message = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}{place and f': at {place}'}"
        raised = {"type": type(error).__name__, "place": place}
        return Reading({AT_ZERO: "temperature" in str(error).lower()}, details={"hint": message, "raised": raised})
    differing = int((answer != greedy).sum())
    hint = f"{differing} tokens are not the most probable ones" if differing else ""
    return Reading({AT_ZERO: differing == 0}, details={"hint": hint})
