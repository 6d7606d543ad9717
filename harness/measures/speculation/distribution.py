"""The measure of the distribution of speculated tokens: enumerated, against the target's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import SubjectError
from harness.core.seeds import seeded
from harness.measures.chi_squared import chi_squared_tail
from harness.measures.generation.sampling import next_token_distribution
from harness.measures.speculation.drafts import Draft, enumerated_pair
from harness.measures.speculation.laws import VARIANTS, Conditional, Law, Speculated, Tokens, of_first, total_variation
from harness.subjects.enumerated_draws import enumerate_outcomes
from harness.subjects.model import Model
from harness.subjects.protocols import Speculates
from harness.suites.measure_registry import Reading, measure

PROMPT = (0, 2, 1, 1, 2, 0, 1, 0, 2)
MOST_RUNS = 2_500
DRAWN = 1_200  # answers, if the random outcomes cannot be followed
LEAST_LIKELY = 1e-6
FITS = 1e-7  # in total variation: a law that explains what was found
DIFFERS = 1e-9


@measure
def speculative_distribution(
    subject: Speculates,
    *,
    size: str,
    draft: Draft = "far",
    lookahead: int = 2,
    new_tokens: int = 3,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Reading:
    """Return the total variation between speculated tokens and the target's own samples: of one token, two, ...

    The models have 3 tokens and one layer (see `enumerated_pair`), in float64. Every outcome of the subject's random
    draws is followed, with its exact probability. Where they cannot be followed, or where what was followed is not
    what real draws give, DRAWN answers are judged by Pearson's chi-squared test: 1 if it rejects, and else 0.
    """
    target, drafting = enumerated_pair(subject, size, draft)
    prompt = torch.tensor([PROMPT])
    settings: dict[str, Any] = {
        "lookahead": lookahead,
        "temperature": temperature,
        "top_k": top_k or None,
        "top_p": top_p if top_p < 1.0 else None,
    }

    def answer(seed: int | None = None) -> Tokens:
        ids = subject.speculate(target, drafting, prompt, new_tokens, seed=seed, **settings)
        return new_part(ids, len(PROMPT), new_tokens)

    raw = [_conditional(model) for model in (target, drafting)]
    filtered = [_filtered(each, temperature=temperature, top_k=top_k, top_p=top_p) for each in raw]
    asked = Speculated(filtered[0], filtered[1], raw[0], raw[1], PROMPT, new_tokens, lookahead)
    expected = asked.target_law()
    with torch.no_grad():
        found = enumerate_outcomes(lambda: answer(0), most_runs=MOST_RUNS)
    seen = f"{found.runs} outcomes"
    if not found.unseen:
        law = found.probabilities
        if total_variation(law, expected) <= DIFFERS or _drawn_p_value(law, answer) >= LEAST_LIKELY:
            values = {
                _name(n): total_variation(of_first(law, n), of_first(expected, n)) for n in range(1, new_tokens + 1)
            }
            return Reading(values, "of probability", {"seen": seen, **_explained(subject, target, asked, law, values)})
    likely = _drawn_p_value(expected, answer)
    values = {_name(new_tokens): 0.0 if likely >= LEAST_LIKELY else 1.0}
    return Reading(values, "of probability", {"seen": f"{DRAWN} answers ({found.unseen or 'drawn unseen'})"})


def new_part(ids: Tensor, prompt_length: int, new_tokens: int) -> Tokens:
    """Return the new tokens of an answer (1, T). Raises SubjectError if there are fewer than were asked for."""
    if ids.shape[1] < prompt_length + new_tokens:
        raise SubjectError(
            f"speculative decoding returned {tuple(ids.shape)}, expected at least {prompt_length + new_tokens} tokens: "
            f"{prompt_length} of the prompt and {new_tokens} new ones"
        )
    return tuple(int(x) for x in ids[0, prompt_length : prompt_length + new_tokens])


def _name(tokens: int) -> str:
    return "token 1" if tokens == 1 else f"tokens 1 to {tokens}"


def _conditional(model: Model) -> Conditional:
    rows: dict[Tokens, Tensor] = {}

    def row(text: Tokens) -> Tensor:
        if text not in rows:
            with torch.no_grad():
                rows[text] = model.logits(torch.tensor([text]))[0, -1].double().softmax(-1)
        return rows[text]

    return row


def _filtered(row: Conditional, *, temperature: float, top_k: int, top_p: float) -> Conditional:
    rows: dict[Tokens, Tensor] = {}

    def filtered(text: Tokens) -> Tensor:
        if text not in rows:
            rows[text] = next_token_distribution(
                row(text).log(), temperature=temperature, top_k=min(top_k, 3), top_p=top_p
            )
        return rows[text]

    return filtered


def _explained(
    subject: Speculates, target: Model, asked: Speculated, law: Law, values: dict[str, float]
) -> dict[str, Any]:
    """Return the known mistake that explains a wrong law, in the form of a reading's details; {} for a right one."""
    if max(values.values()) <= DIFFERS:
        return {}
    line = subject.speculation_line(target, "model")
    for variant in VARIANTS:
        for limited in (True, False):
            if total_variation(law, asked.law(variant, limited=limited)) <= FITS:
                return {"hint": f"{variant.says} [{variant.id}]", "line": line}
    return {"hint": "no known mistake has this distribution", "line": line}


def _drawn_p_value(law: Law, answer: Callable[[int | None], Tokens]) -> float:
    """Return Pearson's p-value of DRAWN answers by the law; 0 if one is impossible."""
    counts: dict[Tokens, int] = {}
    for n in range(DRAWN):
        text = answer(seeded(n))
        counts[text] = counts.get(text, 0) + 1
    if any(law.get(text, 0.0) < 1e-12 for text in counts):
        return 0.0
    rare = [text for text, mass in law.items() if mass * DRAWN < 5]
    cells = [(law[text] * DRAWN, counts.get(text, 0)) for text in law if text not in rare]
    if rare:
        cells.append((sum(law[text] for text in rare) * DRAWN, sum(counts.get(text, 0) for text in rare)))
    cells = [(mean, count) for mean, count in cells if mean > 1e-9]
    if len(cells) < 2:
        return 1.0
    return chi_squared_tail(sum((count - mean) ** 2 / mean for mean, count in cells), len(cells) - 1)
