"""Measures of greedy speculation: its tokens, their number, and the calls of the target that it takes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import Missing, MissingAbility
from harness.core.sizes import SIZES
from harness.measures.generation.decoding import TIE
from harness.measures.speculation.distribution import new_part
from harness.measures.speculation.drafts import Draft, pair
from harness.oracle.speculation import agreement, greedy_rounds
from harness.oracle.tokens import batch
from harness.subjects.forward_answer import unpack
from harness.subjects.model import Model
from harness.subjects.protocols import Speculates
from harness.suites.measure_registry import Reading, measure

SAME = 1e-9  # relative, in float64: rounding is some 1e-15


@measure
def speculative_greedy(
    subject: Speculates, *, size: str, draft: Draft, lookahead: int = 4, prompt_length: int = 6, new_tokens: int = 20
) -> Reading:
    """Count the speculated greedy tokens that are not the target's argmax after the tokens before them.

    A token whose logit is within rounding of the largest one is right.
    """
    target, drafting = pair(subject, size, draft)
    prompt = prompt_of(size, draft, prompt_length)
    answer = subject.speculate(target, drafting, prompt, new_tokens, lookahead=lookahead, temperature=0.0)
    text = [*prompt[0].tolist(), *new_part(answer, prompt_length, new_tokens)]
    with torch.no_grad():
        logits = target.logits(torch.tensor([text[:-1]]))[0, prompt_length - 1 :]  # (new, V)
    chosen = logits.gather(1, torch.tensor(text[prompt_length:])[:, None])[:, 0]
    # `not >=` and not `<`: NaN compares false, and must count as wrong.
    wrong = (~(chosen >= logits.max(1).values - TIE * logits.abs().amax(1))).nonzero()[:, 0].tolist()
    details: dict[str, Any] = {}
    if wrong:
        kind = drafting if isinstance(drafting, str) else "model"
        details = {"hint": f"first at new token {wrong[0] + 1}", "line": subject.speculation_line(target, kind)}
    return Reading(len(wrong), "tokens", details)


def prompt_of(size: str, draft: Draft, length: int) -> Tensor:
    """Return a prompt (1, length) of random tokens; for prompt lookup, one that repeats itself."""
    ids, _ = batch(SIZES[size], "random", rows=1, length=length)
    return ids if draft != "prompt-lookup" else ids[:, : length // 2].repeat(1, 3)[:, :length]


@contextlib.contextmanager
def observed_logits(model: Model) -> Iterator[list[Tensor]]:
    """Collect the logits (T, V) of each call of the module inside the block."""
    calls: list[Tensor] = []
    hook = model.module.register_forward_hook(lambda module, arguments, answer: calls.append(unpack(answer)[0][0]))
    try:
        yield calls
    finally:
        hook.remove()


@measure
def speculative_target_calls(
    subject: Speculates, *, size: str, draft: Draft, lookahead: int = 3, prompt_length: int = 4, new_tokens: int = 24
) -> Reading:
    """Count the calls of the target beyond one a round, for a greedy text in float64.

    The rounds follow from full passes of both models: a draft that does not see what it should is accepted less often,
    and a lost token behind accepted drafts takes a further call. Raises MissingAbility if the target is not called as
    a module.
    """
    target, drafting = pair(subject, size, draft, "float64")
    if isinstance(drafting, str):
        raise MissingAbility("the calls of a draft that is no model have no closed form here")
    prompt = prompt_of(size, draft, prompt_length)
    with observed_logits(target) as calls, observed_logits(drafting) as drafted:
        answer = subject.speculate(target, drafting, prompt, new_tokens, lookahead=lookahead, temperature=0.0)
    if not calls:
        raise MissingAbility(f"the speculative decoding of {subject.name} does not call the target as a module")
    text = _greedy_text(target, prompt, new_tokens)
    rounds = greedy_rounds(agreement(drafting, text, prompt_length), lookahead)
    extra = len(calls) - rounds.target_calls
    details: dict[str, Any] = {
        "calls": len(calls),
        "rounds": rounds.target_calls,
        "accepted": list(rounds.accepted),
        "judged": list(rounds.judged),
        "tokens": int(answer.shape[1]) - prompt_length,
    }
    if extra > 1:
        cause = (
            f"{len(calls)} calls of the target, where {rounds.target_calls} rounds give the same {new_tokens} tokens"
        )
        if len(calls) >= new_tokens:
            cause += ": one a token, as without speculation"
        elif draft == "same":
            with torch.no_grad():
                expected = drafting.logits(text)[0]  # (T, V)
            own = torch.cat([call.reshape(-1, call.shape[-1])[-1:, : expected.shape[1]] for call in drafted])
            apart = (own[:, None] - expected).abs().amax(-1).amin(-1)  # (calls, T, V) -> (calls)
            same = bool(len(own)) and bool((apart <= SAME * expected.abs().max()).all())
            cause += (
                ": no draft is rejected, and the target's own token behind accepted drafts is lost"
                if same
                else ": the draft, which has the target's weights, computes other logits than on the accepted text"
            )
        details |= {"hint": cause, "line": subject.speculation_line(target, "model")}
    return Reading(extra, "calls", details)


def _greedy_text(model: Model, text: Tensor, new_tokens: int) -> Tensor:
    """Return the prompt (1, T) and the model's greedy tokens, each by a full pass."""
    for _ in range(new_tokens):
        with torch.no_grad():
            text = torch.cat((text, model.logits(text)[:, -1:].argmax(-1)), dim=1)
    return text


@measure
def speculative_lengths(subject: Speculates, *, size: str, lookahead: int = 4) -> Reading:
    """Return "right" where exactly the tokens that were asked for follow the prompt, or else a description.

    The draft is the target itself, so that every round is as long as it can be. A ValueError is right for no new
    tokens, and at the end of the context: a program that drafts beyond what is asked for may refuse there.
    """
    context = SIZES[size].context
    target, drafting = pair(subject, size, "same")
    found: dict[str, str] = {}
    for place, length, new_tokens in (
        ("none asked for", 6, 0),
        ("one", 6, 1),
        ("as many as drafts", 6, lookahead),
        ("two rounds and one", 6, 2 * (lookahead + 1) + 1),
        ("a prompt of one token", 1, lookahead + 2),
        ("to the end of the context", context - 9, 9),
        ("beyond the context", context - 5, 9),
    ):
        prompt, _ = batch(SIZES[size], "random", rows=1, length=length)
        given = prompt.clone()
        try:
            answer = subject.speculate(target, drafting, prompt, new_tokens, lookahead=lookahead, temperature=0.0)
        except Missing:
            raise
        except ValueError:
            found[place] = "right" if place == "none asked for" or "context" in place else "refused"
        except Exception as error:
            found[place] = f"{type(error).__name__}: {error}"[:120]
        else:
            more = answer.shape[1] - length - new_tokens
            if more:
                found[place] = f"{abs(more)} too {'many' if more > 0 else 'few'}"
            else:
                found[place] = "right" if torch.equal(answer[:, :length], given) else "another prompt"
    return Reading(found)
