"""Measures of sampling: each step's probabilities, or the tokens that were drawn, against the definition."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.seeds import seeded
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.generation.sampled_answer import SAMPLED_STEPS, p_value_of_uniform, sampled, steps_of
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.protocols import Generates
from harness.suites.measure_registry import Reading, measure


@measure
def sampling_by_definition(
    subject: Generates,
    *,
    size: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_length: int = 4,
    new_tokens: int = SAMPLED_STEPS,
    cache: Literal["default", "on", "off"] = "default",
    weights: Weights = "probe",
) -> Reading:
    """Return the distance of each step's distribution from the definition: temperature, then top-k, then top-p.

    See `SampledAnswer.distances` for the unit. A long text is sampled, because a greedy one soon repeats itself, and
    hides what its tokens were computed from. `cache`: if the subject offers no choice, "off" is its default.
    """
    model = cached_model(subject, size, weights)
    settings: dict[str, Any] = {
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p if top_p < 1.0 else None,
        "seed": seeded(0),
        **({} if cache == "default" else {"use_cache": cache == "on"}),
    }

    def generate(prompts: Tensor, count: int) -> Tensor:
        try:
            return subject.generate(model, prompts, count, **settings)
        except MissingAbility:
            if cache != "off":
                raise
            return subject.generate(model, prompts, count, **{**settings, "use_cache": None})

    answer = sampled(
        model,
        generate,
        lambda rows: batch(SIZES[size], "random", rows=rows, length=prompt_length)[0],
        steps=new_tokens,
    )
    distances = answer.distances(
        lambda logits, context: next_token_distribution(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    )
    return Reading(distances, "of probability", {"seen": answer.seen})


@measure
def draws_p_value(
    subject: Generates, *, size: str, weights: Weights = "probe", prompt_length: int = 4, rows: int = 600
) -> Reading:
    """Return the p-values of the draws: of two steps, of both together, and of neighbouring rows.

    Each draw is turned into a number that is uniform on [0, 1] for a correct sampler, in every context, and
    independent of all others. Pearson's chi-squared test judges the numbers. The p-value of a correct sampler is
    uniform between 0 and 1; that of a wrong one approaches 0 as draws are added.
    """
    prompt, _ = batch(SIZES[size], "random", rows=1, length=prompt_length)
    model = cached_model(subject, size, weights)
    answer = subject.generate(model, prompt.expand(rows, -1).contiguous(), 2, seed=seeded(0))
    drawn = [step.uniform for step in steps_of(model, answer, prompt_length, lambda logits, _: logits.softmax(-1))]
    found = {f"step {n}": p_value_of_uniform([uniform], bins=20) for n, uniform in enumerate(drawn)}
    for n, (first, second) in enumerate(itertools.pairwise(drawn)):
        found[f"steps {n} and {n + 1} together"] = p_value_of_uniform([first, second], bins=6)
    for n, uniform in enumerate(drawn):
        found[f"neighbouring rows at step {n}"] = p_value_of_uniform([uniform[::2], uniform[1::2]], bins=6)
    return Reading(found, "", {"draws": rows})


def next_token_distribution(logits: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Return the probabilities (..., V) that the definition gives to logits (..., V).

    A `top_k` of 0 and a `top_p` of 1 filter nothing. Top-p keeps the smallest set of most probable tokens whose mass,
    after top-k, reaches p (Holtzman et al., 2020).
    """
    ordered, order = (logits / temperature).softmax(-1).sort(dim=-1, descending=True)
    if top_k:
        ordered[..., top_k:] = 0.0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    if top_p < 1.0:
        ordered[ordered.cumsum(-1) - ordered >= top_p] = 0.0
        ordered = ordered / ordered.sum(-1, keepdim=True)
    return torch.zeros_like(ordered).scatter(-1, order, ordered)
