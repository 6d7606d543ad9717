"""Greedy speculation round by round, computed from full passes: the calls of the target, and the drafts accepted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.subjects.model import Model


@dataclass(frozen=True)
class GreedyRounds:
    """What greedy speculation does: the calls of the target, and the drafts judged and accepted, by position.

    `tokens_before_last`: the new tokens of all rounds but the last, which is cut at the end of the text.
    """

    target_calls: int
    judged: tuple[int, ...]
    accepted: tuple[int, ...]
    tokens_before_last: int = 0

    @property
    def tokens_a_call(self) -> float:
        """The tokens for each call of the target, without the last round; 0 if there is no other."""
        return self.tokens_before_last / (self.target_calls - 1) if self.target_calls > 1 else 0.0

    @property
    def acceptance(self) -> float:
        """The share of accepted drafts among those that were judged; 0 if none was."""
        return sum(self.accepted) / sum(self.judged) if sum(self.judged) else 0.0


def greedy_rounds(agrees: Sequence[bool], lookahead: int) -> GreedyRounds:
    """Return the rounds of a text, by whether the draft proposes each new token after the tokens before it.

    Only drafts that continue the accepted text are judged, so that this is all that a draft does.
    """
    at, calls, start, judged, accepted = 0, 0, 0, [0] * lookahead, [0] * lookahead
    while at < len(agrees):
        calls += 1
        start = at
        for position in range(min(lookahead, len(agrees) - start - 1)):
            judged[position] += 1
            if not agrees[at]:
                break
            accepted[position] += 1
            at += 1
        at += 1  # the target's own token: behind the accepted drafts, or in the place of the rejected one
    return GreedyRounds(calls, tuple(judged), tuple(accepted), start)


def agreement(draft: Model, text: Tensor, prompt_length: int) -> list[bool]:
    """Return, for each new token of a text (1, T), whether it is the draft's likeliest after the tokens before it."""
    with torch.no_grad():
        logits = draft.logits(text[:, :-1])[0, prompt_length - 1 :]  # (new, V)
    return (logits.argmax(-1).to(text.device) == text[0, prompt_length:]).tolist()


def tokens_a_call(acceptance: float, lookahead: int) -> float:
    """Return the expected tokens of a round, if each draft is accepted with this probability: Leviathan et al., eq. 1.

    (1 - α^(γ+1)) / (1 - α), which is γ + 1 at α = 1.
    """
    if acceptance >= 1.0:
        return lookahead + 1.0
    return float((1 - acceptance ** (lookahead + 1)) / (1 - acceptance))


def speed_up(acceptance: float, lookahead: int, cost_ratio: float, verification_ratio: float = 1.0) -> float:
    """Return the speed-up over one call of the target a token: theorem 3.8 of Leviathan et al.

    `cost_ratio` c is the time of a call of the draft over one of the target. The paper takes a call of the target with
    all drafts to be as fast as one with a single token; `verification_ratio` is what it takes instead:
    (1 - α^(γ+1)) / ((1 - α)(γc + v)), with v = 1 in the paper.
    """
    return tokens_a_call(acceptance, lookahead) / (lookahead * cost_ratio + verification_ratio)
