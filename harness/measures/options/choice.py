"""Measures of the options by which the next token is chosen: penalties, min-p, top-k of 0, and sampling off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import Missing, SubjectError
from harness.core.seeds import seeded
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.generation.sampled_answer import Definition, SampledAnswer, sampled
from harness.measures.options.continuation import new_tokens, option_of, rows_of
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import TakesOptions
from harness.suites.measure_registry import Reading, measure

Penalty = Literal["repetition", "frequency", "presence"]
PENALTIES: Mapping[Penalty, float] = {"repetition": 1.7, "frequency": 0.8, "presence": 1.2}
STEPS = 6
LENGTH = 6
MIN_P = 0.3


@measure
def penalised_choice(subject: TakesOptions, *, size: str, penalty: Penalty, weights: Weights = "probe") -> Reading:
    """Return the distance of each step's distribution from that of the penalised logits.

    Of the tokens so far: a repetition penalty divides their positive logits and multiplies their negative ones (Keskar
    et al., 2019); a frequency penalty is subtracted once for each time that a token occurs, a presence penalty once.
    The prompt may count or not: the nearer definition counts, and `convention` says which.
    """
    model = cached_model(subject, size, weights)
    name = option_of(subject, model, f"{penalty} penalty")
    answer = _sampled(subject, model, {name: PENALTIES[penalty]}, steps=STEPS)
    gaps = {
        said: answer.distances(_penalised(penalty, start))
        for said, start in {"the prompt counts": 0, "the prompt does not count": LENGTH}.items()
    }
    convention = min(gaps, key=lambda said: _largest(gaps[said]))
    return Reading(gaps[convention], "of probability", {"seen": answer.seen, "convention": convention})


def _penalised(penalty: Penalty, start: int) -> Definition:
    """Return the probabilities after a penalty for the tokens from `start` on."""
    strength = PENALTIES[penalty]

    def definition(logits: Tensor, context: Tensor) -> Tensor:
        seen = context[:, start:]
        times = torch.zeros_like(logits).scatter_add(1, seen, torch.ones_like(seen, dtype=logits.dtype))
        if penalty == "repetition":
            lowered = torch.where(logits > 0, logits / strength, logits * strength)
            return torch.where(times > 0, lowered, logits).softmax(-1)
        return (logits - strength * (times if penalty == "frequency" else (times > 0))).softmax(-1)

    return definition


@measure
def min_p_choice(subject: TakesOptions, *, size: str, weights: Weights = "probe") -> Reading:
    """Return the distance of each step's distribution from the definition of min-p.

    Kept are the tokens whose probability is at least min-p times the largest (Nguyen et al., 2024).
    """
    model = cached_model(subject, size, weights)
    answer = _sampled(subject, model, {option_of(subject, model, "min-p"): MIN_P})

    def definition(logits: Tensor, context: Tensor) -> Tensor:
        p = logits.softmax(-1)
        kept = p.masked_fill(p < MIN_P * p.max(-1, keepdim=True).values, 0.0)
        return kept / kept.sum(-1, keepdim=True)

    return Reading(answer.distances(definition), "of probability", {"seen": answer.seen})


@measure
def top_k_of_zero(subject: TakesOptions, *, size: str, weights: Weights = "probe") -> Reading:
    """Return the distance of each step's distribution from the unfiltered one, for top-k of 0; 0 if it is refused.

    An error is a refusal, whatever it says: nothing wrong is sampled. `refused` has its words.
    """
    model = cached_model(subject, size, weights)
    name = option_of(subject, model, "top-k")
    try:
        answer = _sampled(subject, model, {name: 0})
        distances = answer.distances(lambda logits, context: logits.softmax(-1))
    except (Missing, SubjectError):
        raise
    except Exception as error:
        return Reading({"sampled": 0.0}, "of probability", {"refused": describe_error(error)})
    return Reading(distances, "of probability", {"seen": answer.seen})


@measure
def sampling_off(subject: TakesOptions, *, size: str, weights: Weights = "probe") -> Reading:
    """Count the tokens that are not the greedy ones with sampling off, by temperature.

    Raises MissingAbility if generate has no switch for sampling.
    """
    model = cached_model(subject, size, weights)
    option_of(subject, model, "sampling")
    prompt, _ = batch(SIZES[size], "random", rows=2, length=LENGTH)
    greedy = torch.stack(new_tokens(subject, model, prompt, 8))
    temperature = next((n for n in ("temperature", "temp") if n in subject.generate_options(model)), None)
    found = {}
    for value in (0.5, 3.0) if temperature is not None else (1.0,):
        options: dict[str, float] = {} if temperature is None else {temperature: value}
        found[f"temperature {value}"] = int(
            (torch.stack(new_tokens(subject, model, prompt, 8, options)) != greedy).sum()
        )
    return Reading(found, "tokens")


def _sampled(subject: TakesOptions, model: Model, options: Mapping[str, Any], *, steps: int = 2) -> SampledAnswer:
    """Return a sampled answer to prompts that repeat some of their tokens."""

    def prompts(rows: int) -> Tensor:
        ids, _ = batch(model.size, "random", rows=rows, length=LENGTH)
        ids[:, 2], ids[:, 4] = ids[:, 0], ids[:, 0]
        return ids

    def generate(ids: Tensor, count: int) -> Tensor:
        rows = rows_of(subject.generate_with(model, ids, count, options, seed=seeded(0)))
        answer = torch.stack(rows)
        answer = answer if answer.shape[1] > count else torch.cat((ids, answer), dim=1)
        if answer.shape != (len(ids), LENGTH + count):
            raise SubjectError(f"generate returned ids of shape {tuple(answer.shape)} for {count} new tokens")
        return answer

    return sampled(model, generate, prompts, steps=steps)


def _largest(gaps: Mapping[str, float]) -> float:
    found = 0.0
    for gap in gaps.values():
        found = noise_verdict.maximum(found, gap)
    return found if found == found else float("inf")
