"""Greedy speculation round by round, computed from full passes: how many calls of the target it takes."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.subjects.model import Model


@dataclass(frozen=True)
class GreedyRounds:
    """What greedy speculation does: the calls of the target, and the drafts that were judged and accepted."""

    target_calls: int
    judged: int
    accepted: int


def greedy_rounds(target: Model, draft: Model, tokens: list[int], prompt_length: int, lookahead: int) -> GreedyRounds:
    """Return the rounds after which `tokens`, the target's own greedy text with its prompt, is complete."""
    at, calls, judged, accepted = prompt_length, 0, 0, 0
    while at < len(tokens):
        calls += 1
        text = tokens[:at]
        for _ in range(min(lookahead, len(tokens) - at - 1)):
            judged += 1
            text.append(_likeliest(draft, text))
            if text[-1] != tokens[len(text) - 1]:
                break
            accepted += 1
            at += 1
        at += 1  # the target's own token: behind the accepted drafts, or in the place of the rejected one
    return GreedyRounds(calls, judged, accepted)


def greedy_text(model: Model, prompt: list[int], new_tokens: int) -> list[int]:
    """Return the prompt and the model's greedy tokens, each by a full pass."""
    text = list(prompt)
    for _ in range(new_tokens):
        text.append(_likeliest(model, text))
    return text


def _likeliest(model: Model, text: list[int]) -> int:
    with torch.no_grad():
        return int(model.logits(torch.tensor([text]))[0, -1].argmax())
