"""Why a request has other tokens or logits in company: known mistakes computed, and the one that fits."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.batching.plan import POSITIONS, REQUESTS, Planned, Served, greedy_alone, logits_alone, serve
from harness.oracle.formula import Formula, Replacement
from harness.oracle.probe_weights import Weights, state
from harness.oracle.variants.embedding import look_up
from harness.subjects.model import Model
from harness.subjects.protocols import Serves

SAME = 1e-9  # relative, in float64: rounding is some 1e-15, and the least of the mistakes below some 1e-2
FEWER_BITS = 2e-2  # relative: keys or values in 8 significand bits change a logit by up to some 1e-2


@dataclass(frozen=True)
class Evidence:
    """A plan that an engine served in float64, watched, and the model in float64 that it was served by."""

    subject: Serves
    model: Model
    plan: Sequence[Planned]
    served: Served
    size: str
    weights: Weights


def explain_tokens(seen: Evidence, number: int, expected: Sequence[int]) -> str:
    """Return why the tokens of a request are not the expected ones; "" if they are."""
    found = seen.served.tokens[number]
    if list(found) == list(expected):
        return ""
    if not found:
        return "it gets no token"
    if list(expected[: len(found)]) == found:
        return f"it ends {len(expected) - len(found)} of {len(expected)} tokens early"
    if found[: len(expected)] == list(expected):
        return f"it gets {len(found) - len(expected)} more than the {len(expected)} tokens that it asked for"
    return explain_logits(seen, number) or explain_choice(seen, number, expected)


def explain_logits(seen: Evidence, number: int) -> str:
    """Return what the first wrong logits of a request are; "" if all are right or none were seen."""
    each, tokens = seen.plan[number], seen.served.tokens[number]
    if not tokens:
        return ""
    right = logits_alone(seen.model, each.prompt, tokens)
    for at, step in enumerate(seen.served.steps[number]):
        rows = seen.served.rows[step]
        if len(rows) and not _is_among(right[at], rows):
            ids = [*each.prompt, *tokens[:at]]
            where = f"from token {at} on " if at else ""
            for candidates, say in _mistakes(seen, ids, decoding=at > 0):
                for row, candidate in enumerate(candidates):
                    if _is_among(candidate, rows):
                        return where + say(row)
            if (gap := _gap(right[at], rows)) <= FEWER_BITS:
                return f"{where}its logits are off by {gap:.0e} of the largest, as with keys and values of fewer bits"
            return where + _whose(seen, number, step)
    return ""


def explain_choice(seen: Evidence, number: int, expected: Sequence[int]) -> str:
    """Return whose token a request gets, if its logits are right."""
    tokens, each = seen.served.tokens[number], seen.plan[number]
    at = next((n for n, (a, b) in enumerate(zip(tokens, expected, strict=False)) if a != b), 0)
    step = seen.served.steps[number][at]
    if not len(seen.served.rows[step]):
        return f"token {at} is another one (its logits cannot be seen)"
    for other, steps in enumerate(seen.served.steps):
        if other != number and step in steps:
            place = steps.index(step)
            likeliest = logits_alone(seen.model, seen.plan[other].prompt, seen.served.tokens[other][: place + 1])[
                place
            ].argmax()
            if int(likeliest) == tokens[at]:
                return f"its logits are right, and token {at} is chosen from those of a neighbour, request {other}"
    greedy = each.settings.get("temperature") == 0.0
    return f"its logits are right, and token {at} is not {'the likeliest of them' if greedy else 'drawn as alone'}"


def _is_among(row: Tensor, rows: Tensor) -> bool:
    """Return True if one of the rows (N, V) is that row (V), to rounding in float64."""
    return _gap(row, rows) <= SAME


def _gap(row: Tensor, rows: Tensor) -> float:
    """Return the largest difference of a row (V) from the nearest of the rows (N, V), over its largest value."""
    gaps = (rows - row).abs().amax(-1) / row.abs().max()
    return float(gaps[gaps.isfinite()].min()) if bool(gaps.isfinite().any()) else math.inf


Mistake = tuple[Tensor, Callable[[int], str]]  # logits (N, V) of N ways to make it, and a sentence for each


def _mistakes(seen: Evidence, ids: list[int], *, decoding: bool) -> Iterator[Mistake]:
    """Yield the logits (N, V) after `ids` that known mistakes compute."""
    size, length = SIZES[seen.size], len(ids)
    weights = {name: tensor.double() for name, tensor in state(seen.size, seen.weights).items()}

    def after(rows: Tensor | list[list[int]], *changes: Replacement, start: int = 0) -> Tensor:
        return Formula(size, weights, changes, start=start)(torch.as_tensor(rows))[:, -1]

    if length < size.context:
        yield after([[*ids, ids[-1]]]), lambda _: "the last token is read twice"
    if length > 1:
        yield after([ids[:-1]]), lambda _: "the last token is not read: the logits are those after the one before it"
    if decoding:
        others = torch.tensor(ids).repeat(size.vocab_size, 1)
        others[:, -1] = torch.arange(size.vocab_size)
        yield after(others), lambda token: f"the newest token that it reads is {_whose_token(seen, ids, token)}"
        for place in range(1, length - 1):
            said = (
                f"its newest token is read at position {place} instead of {length - 1}, and those behind are not seen"
            )
            yield after([[*ids[:place], ids[-1]]]), lambda _, said=said: said  # type: ignore[misc]
    for shift in (shift for distance in range(1, size.context) for shift in (distance, -distance)):
        if 0 <= length - 1 + shift < size.context:
            moved = look_up(lambda at, _, p, shift=shift: torch.where(p == p[-1], p + shift, p))  # type: ignore[misc]
            said = (
                f"the position of its newest token is {length - 1 + shift} instead of {length - 1}, as in another row"
            )
            yield after([ids], Replacement("embedding.position", moved)), lambda _, said=said: said  # type: ignore[misc]
        if shift >= 0 and length + shift <= size.context and not decoding:
            moved = look_up(lambda at, _, p, shift=shift: p + shift)  # type: ignore[misc]
            said = f"its positions begin at {shift} instead of 0, as another row's"
            yield after([ids], Replacement("embedding.position", moved)), lambda _, said=said: said  # type: ignore[misc]
    for gone in range(1, length):
        said = f"the first {gone} of its {length} positions are not seen"
        yield after([ids[gone:]], start=gone), lambda _, said=said: said  # type: ignore[misc]


def _whose_token(seen: Evidence, ids: list[int], token: int) -> str:
    if len(ids) > 1 and token == ids[-2]:
        return "the one before its own newest, again"
    if any(token in (*tokens, *each.prompt) for tokens, each in zip(seen.served.tokens, seen.plan, strict=True)):
        return f"{token}, a neighbour's, and its own is {ids[-1]}"
    return f"{token}, and its own is {ids[-1]}"


def _whose(seen: Evidence, number: int, step: int) -> str:
    """Return what the logits of a request depend on: its neighbours' prompts, the company, or neither.

    The plan is served again with other prompts of its neighbours, and the request alone, both by a new engine.
    """
    vocabulary = SIZES[seen.size].vocab_size
    changed = [
        each if at == number else replace(each, prompt=tuple((token + 1) % vocabulary for token in each.prompt))
        for at, each in enumerate(seen.plan)
    ]
    again = serve(
        seen.subject.new_engine(seen.model, requests=REQUESTS, positions=POSITIONS), seen.model, changed, watch=True
    )
    # Every other row has changed with the prompts: a row of both runs is that of this request.
    shared = step < len(again.rows) and any(_is_among(row, again.rows[step]) for row in seen.served.rows[step])
    said = "are others" if shared else "depend on the tokens of its neighbours"
    own = seen.plan[number]
    engine = seen.subject.new_engine(seen.model, requests=REQUESTS, positions=POSITIONS)
    (tokens,) = serve(engine, seen.model, [replace(own, arrives=0)]).tokens
    alone = "right" if tokens == greedy_alone(seen.model, own.prompt, own.new_tokens) else "wrong"
    ended = [at for at, steps in enumerate(seen.served.steps) if at != number and steps and steps[-1] == step - 1]
    since = f", since request {ended[0]} has ended" if ended else ""
    return f"its logits {said}{since}; alone it is {alone}"
