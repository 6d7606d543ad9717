"""The law of speculative decoding: the exact distribution of its tokens, done right and with known mistakes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Tokens = tuple[int, ...]
Law = dict[Tokens, float]
Conditional = Callable[[Tokens], Tensor]  # from the tokens so far to the probabilities (V) of the next
Rows = Sequence[Tensor]


def _accept(p: Rows, q: Rows, i: int, x: int) -> float:
    return min(1.0, float(p[i][x] / q[i][x]))


def _residual(p: Rows, q: Rows, i: int) -> Tensor:
    rest = (p[i] - q[i]).clamp(min=0.0)
    return rest / rest.sum() if rest.sum() > 0 else p[i]


@dataclass(frozen=True)
class Variant:
    """One way to do a round. p: the target's rows at each of n drafts and behind the last; q: the drafts' rows.

    `after_rejection` may have less mass than 1: a sampler that compares with cumulated sums then takes the last token.
    """

    id: str
    where: str
    says: str
    accept: Callable[[Rows, Rows, int, int], float] = _accept
    after_rejection: Callable[[Rows, Rows, int], Tensor] = _residual
    bonus: Callable[[Rows, Rows], Tensor] = lambda p, q: p[-1]
    goes_on: bool = False  # a draft behind a rejected one is still judged
    # How many of its positions the target's cache keeps, by the length of the text and if a draft was rejected.
    keeps: Callable[[int, bool], int] = lambda length, rejected: length - 1
    one_number: bool = False  # one uniform number for all drafts of a round
    filtered: tuple[bool, bool] = (True, True)  # the target's, the draft's probabilities


def _row(rows: Rows, i: int) -> Tensor:
    return rows[min(max(i, 0), len(rows) - 1)]


def _unnormalised(p: Rows, q: Rows, i: int) -> Tensor:
    return (p[i] - q[i]).clamp(min=0.0)


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum() if weights.sum() > 0 else torch.full_like(weights, 1 / len(weights))


EVERYTHING = 1_000_000  # positions
RIGHT = Variant("", "", "right")
VARIANTS = (
    Variant("spec-residual-missing", "speculation.residual",
            "after a rejection the token is drawn from the target's own distribution, not from the residual "
            "max(0, p - q)", after_rejection=lambda p, q, i: p[i]),
    Variant("spec-residual-not-normalised", "speculation.residual",
            "the residual max(0, p - q) is not normalised, and what is missing to 1 falls to the last token",
            after_rejection=_unnormalised),
    Variant("spec-residual-absolute", "speculation.residual",
            "the residual is |p - q|, not max(0, p - q)",
            after_rejection=lambda p, q, i: _normalised((p[i] - q[i]).abs())),
    Variant("spec-residual-reversed", "speculation.residual",
            "the residual is max(0, q - p), not max(0, p - q)",
            after_rejection=lambda p, q, i: _normalised((q[i] - p[i]).clamp(min=0.0))),
    Variant("spec-residual-wrong-row", "speculation.residual",
            "the residual is that of the position behind the rejected draft",
            after_rejection=lambda p, q, i: _residual((*p[i + 1 :],), (_row(q, i + 1),), 0)),
    Variant("spec-accept-next-position", "speculation.acceptance",
            "a draft is judged by the target's probabilities of the position behind it",
            accept=lambda p, q, i, x: min(1.0, float(p[i + 1][x] / q[i][x]))),
    Variant("spec-accept-position-before", "speculation.acceptance",
            "a draft is judged by the target's probabilities of the position before it",
            accept=lambda p, q, i, x: min(1.0, float(_row(p, i - 1)[x] / q[i][x]))),
    Variant("spec-accept-all", "speculation.acceptance",
            "every draft is accepted", accept=lambda p, q, i, x: 1.0),
    Variant("spec-accept-inverted", "speculation.acceptance",
            "a draft is accepted where it must be rejected",
            accept=lambda p, q, i, x: 1.0 - _accept(p, q, i, x)),
    Variant("spec-accept-by-p-alone", "speculation.acceptance",
            "a draft is accepted with the target's probability of it, not with min(1, p/q)",
            accept=lambda p, q, i, x: float(p[i][x])),
    Variant("spec-accept-ratio-upside-down", "speculation.acceptance",
            "a draft is accepted with min(1, q/p), not with min(1, p/q)",
            accept=lambda p, q, i, x: min(1.0, float(q[i][x] / p[i][x])) if p[i][x] > 0 else 1.0),
    Variant("spec-accept-likelier-only", "speculation.acceptance",
            "a draft is accepted if p >= q, without a random number",
            accept=lambda p, q, i, x: float(p[i][x] >= q[i][x])),
    Variant("spec-bonus-from-draft", "speculation.bonus",
            "the token behind accepted drafts is not drawn from the target's row there",
            bonus=lambda p, q: q[-1]),
    Variant("spec-bonus-wrong-row", "speculation.bonus",
            "the token behind accepted drafts is drawn from the target's row of the last draft",
            bonus=lambda p, q: _row(p, len(p) - 2)),
    Variant("spec-goes-on-after-rejection", "speculation.acceptance",
            "drafts behind a rejected one are still judged", goes_on=True),
    Variant("spec-cache-not-rolled-back", "speculation.cache",
            "after a rejection the target sees the rejected drafts: its cache keeps them",
            keeps=lambda length, rejected: EVERYTHING),
    Variant("spec-cache-one-too-long", "speculation.cache",
            "after a rejection the target sees the first rejected draft: its cache is cut one position too late",
            keeps=lambda length, rejected: length),
    Variant("spec-cache-emptied", "speculation.cache",
            "after a rejection the target sees the new tokens alone: its cache is emptied",
            keeps=lambda length, rejected: 0 if rejected else length - 1),
    Variant("spec-one-number-a-round", "speculation.acceptance",
            "one random number judges all drafts of a round", one_number=True),
    Variant("spec-target-not-filtered", "speculation.filter",
            "the target's probabilities are without temperature, top-k and top-p",
            filtered=(False, True)),
    Variant("spec-draft-not-filtered", "speculation.filter",
            "drafts are judged by the draft's probabilities without temperature, top-k and "
            "top-p, which they were not drawn with", filtered=(True, False)),
)  # fmt: skip


@dataclass(frozen=True)
class Speculated:
    """A target and a draft by their conditional probabilities, raw and filtered, and what is asked of them."""

    target: Conditional
    draft: Conditional
    raw_target: Conditional
    raw_draft: Conditional
    prompt: Tokens
    new_tokens: int
    lookahead: int

    def target_law(self) -> Law:
        """Return the distribution of the target's own samples: what speculation must have."""
        law: Law = {(): 1.0}
        for _ in range(self.new_tokens):
            law = {
                (*text, x): mass * float(probability)
                for text, mass in law.items()
                for x, probability in enumerate(self.target((*self.prompt, *text)))
                if probability > 0
            }
        return law

    def law(self, variant: Variant, *, limited: bool) -> Law:
        """Return the distribution of the new tokens by a variant; `limited`: it drafts no more than can be used."""
        law: Law = {}
        unfinished: dict[tuple[Tokens, Tokens], float] = {((), self.prompt): 1.0}
        while unfinished:
            (text, cached), mass = unfinished.popitem()
            room = self.new_tokens - len(text) - 1
            count = min(self.lookahead, room) if limited else self.lookahead
            for part, seen, probability in self._round(variant, text, cached, count):
                longer = (*text, *part)
                if len(longer) >= self.new_tokens:
                    longer = longer[: self.new_tokens]
                    law[longer] = law.get(longer, 0.0) + mass * probability
                else:
                    key = (longer, seen)
                    unfinished[key] = unfinished.get(key, 0.0) + mass * probability
        return law

    def _round(self, variant: Variant, text: Tokens, cached: Tokens, count: int) -> list[tuple[Tokens, Tokens, float]]:
        """Return the outcomes of a round: new tokens, what the target sees of them next time, and the probability."""
        target = self.target if variant.filtered[0] else self.raw_target
        judged_by = self.draft if variant.filtered[1] else self.raw_draft
        own = (*self.prompt, *text)
        outcomes: list[tuple[Tokens, Tokens, float]] = []
        size = len(self.target(own))
        for drafts in itertools.product(range(size), repeat=count):
            mass = 1.0
            for i, x in enumerate(drafts):
                mass *= float(self.draft((*own, *drafts[:i]))[x])
            if mass == 0:
                continue
            p = [target((*cached, *drafts[:i])) for i in range(count + 1)]
            q = [judged_by((*own, *drafts[:i])) for i in range(count)]
            for kept, rejected_at, probability in _acceptances(variant, p, q, drafts):
                if rejected_at is None:
                    final = variant.bonus(p, q) if count else p[0]
                else:
                    final = variant.after_rejection(p, q, rejected_at)
                weights = final.clone()
                weights[-1] += max(0.0, 1.0 - float(final.sum()))
                for x, share in enumerate(weights.tolist()):
                    if share > 0:
                        part = (*kept, x)
                        keeps = variant.keeps(len(own) + len(part), rejected_at is not None)
                        seen = (*(*cached, *drafts)[:keeps], x)
                        outcomes.append((part, seen, mass * probability * share))
        return outcomes


def _acceptances(variant: Variant, p: Rows, q: Rows, drafts: Tokens) -> list[tuple[Tokens, int | None, float]]:
    """Return the possible judgements of the drafts: those kept, the place of the first rejection, the probability."""
    ratios = [variant.accept(p, q, i, x) for i, x in enumerate(drafts)]
    found: list[tuple[Tokens, int | None, float]] = []
    for accepted in itertools.product((True, False), repeat=len(drafts)):
        first = accepted.index(False) if False in accepted else None
        if first is not None and any(accepted[first:]) and not variant.goes_on:
            continue
        judged = range(len(drafts) if first is None or variant.goes_on else first + 1)
        kept = tuple(x for x, each in zip(drafts, accepted, strict=True) if each)
        if variant.one_number:
            low = max([ratios[i] for i in judged if not accepted[i]], default=0.0)
            high = min([ratios[i] for i in judged if accepted[i]], default=1.0)
            probability = max(0.0, high - low)
        else:
            probability = 1.0
            for i in judged:
                probability *= ratios[i] if accepted[i] else 1.0 - ratios[i]
        if probability > 0:
            found.append((kept, first, probability))
    return found


def total_variation(a: Law, b: Law) -> float:
    """Return half of the sum of all differences of probability: 0 if the laws are equal, 1 if they are disjoint."""
    return sum(abs(a.get(text, 0.0) - b.get(text, 0.0)) for text in a.keys() | b.keys()) / 2


def of_first(law: Law, tokens: int) -> Law:
    """Return the distribution of the first tokens alone."""
    found: Law = {}
    for text, mass in law.items():
        found[text[:tokens]] = found.get(text[:tokens], 0.0) + mass
    return found
