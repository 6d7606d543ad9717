"""The measure of the distribution of speculated tokens: enumerated, against the target's own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import SubjectError
from harness.core.seeds import seeded
from harness.measures.chi_squared import chi_squared_tail
from harness.measures.generation.sampling import next_token_distribution
from harness.measures.speculation.drafts import Draft, enumerated_pair
from harness.measures.speculation.laws import (
    VARIANTS,
    Conditional,
    Law,
    Speculated,
    Tokens,
    Variant,
    of_first,
    total_variation,
)
from harness.subjects.enumerated_draws import Enumeration, enumerate_outcomes
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
    case = _Case(subject, size, draft, lookahead, new_tokens, temperature, top_k, top_p)
    expected = case.asked.target_law()
    found = case.enumerated()
    if not found.unseen:
        law = found.probabilities
        if total_variation(law, expected) <= DIFFERS or _drawn_p_value(law, case.answer) >= LEAST_LIKELY:
            values = {
                _name(n): total_variation(of_first(law, n), of_first(expected, n)) for n in range(1, new_tokens + 1)
            }
            wrong = max(values.values()) > DIFFERS
            explained = _explained(case, law) if wrong else {}
            return Reading(values, "of probability", {"seen": f"{found.runs} outcomes", **explained})
    likely = _drawn_p_value(expected, case.answer)
    values = {_name(new_tokens): 0.0 if likely >= LEAST_LIKELY else 1.0}
    return Reading(values, "of probability", {"seen": f"{DRAWN} answers ({found.unseen or 'drawn unseen'})"})


@dataclass
class _Case:
    """One pair of models, and what is asked of the subject."""

    subject: Speculates
    size: str
    draft: Draft
    lookahead: int
    new_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        self.target, self.drafting = enumerated_pair(self.subject, self.size, self.draft)
        # A draft that is no model has no probabilities here, and no mistake is looked for.
        models = (self.target, self.target if isinstance(self.drafting, str) else self.drafting)
        target, draft = (_conditional(model) for model in models)
        self.asked = Speculated(
            self._filtered(target), self._filtered(draft), target, draft, PROMPT, self.new_tokens, self.lookahead
        )

    def _filtered(self, row: Conditional) -> Conditional:
        return _filtered(row, temperature=self.temperature, top_k=self.top_k, top_p=self.top_p)

    def answer(self, seed: int | None = None) -> Tokens:
        """Return the new tokens of one call of the subject."""
        ids = self.subject.speculate(
            self.target,
            self.drafting,
            torch.tensor([PROMPT]),
            self.new_tokens,
            lookahead=self.lookahead,
            temperature=self.temperature,
            top_k=self.top_k or None,
            top_p=self.top_p if self.top_p < 1.0 else None,
            seed=seed,
        )
        return new_part(ids, len(PROMPT), self.new_tokens)

    def enumerated(self) -> Enumeration:
        """Return the exact distribution of the subject's answers, if its draws can be followed."""
        self.answer(0)  # how the function is called is found out outside of what is followed
        with torch.no_grad():
            return enumerate_outcomes(lambda: self.answer(0), most_runs=MOST_RUNS)

    def fitting(self, law: Law) -> list[Variant]:
        """Return the known mistakes that have this distribution; none for a draft that is no model."""
        if isinstance(self.drafting, str):
            return []
        return [
            variant
            for variant in VARIANTS
            if any(total_variation(law, self.asked.law(variant, limited=limited)) <= FITS for limited in (True, False))
        ]


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


def _explained(case: _Case, law: Law) -> dict[str, Any]:
    """Return the known mistake that explains a wrong law, and the function's line, as a reading's details.

    Where a simple pair of models cannot tell mistakes apart, the subject is enumerated with another pair.
    """
    line = case.subject.speculation_line(case.target, case.drafting if isinstance(case.drafting, str) else "model")
    fitting = case.fitting(law)
    if len(fitting) > 1:
        telling = _Case(case.subject, case.size, "near", 2, 4, 1.5, 2)  # longer than a round, so that its end shows
        found = telling.enumerated()
        fitting = [each for each in telling.fitting(found.probabilities) if each in fitting] or fitting
    if not fitting:
        return {"hint": "no known mistake has this distribution", "line": line}
    if len(fitting) > 1:
        return {"hint": " or ".join(each.says for each in fitting), "line": line}
    return {"hint": f"{fitting[0].says} [{fitting[0].id}]", "line": line}


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
