"""Why a request has other tokens or logits in company: known mistakes computed, and the one that fits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.measures.batching.plan import POSITIONS, REQUESTS, Planned, Served, logits_alone, serve
from harness.oracle.formula import Formula, Replacement
from harness.oracle.probe_weights import Weights, state
from harness.oracle.variants.embedding import look_up
from harness.subjects.model import Model
from harness.subjects.protocols import Serves

SAME = 1e-9  # relative, in float64: rounding is some 1e-15, and the least of the mistakes below some 1e-2


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
            for candidate, said in _mistakes(seen, ids, decoding=at > 0):
                if _is_among(candidate, rows):
                    return where + said
            return where + _crosstalk(seen, number, step)
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
    return bool(((rows - row).abs().amax(-1) <= SAME * row.abs().max()).any())


def _mistakes(seen: Evidence, ids: list[int], *, decoding: bool) -> Iterator[tuple[Tensor, str]]:
    """Yield the logits (V) after `ids` that known mistakes compute, each with its sentence."""
    size = SIZES[seen.size]
    weights = {name: tensor.double() for name, tensor in state(seen.size, seen.weights).items()}
    length = len(ids)

    def after(tokens: list[int], *changes: Replacement, start: int = 0) -> Tensor:
        return Formula(size, weights, changes, start=start)(torch.tensor([tokens]))[0, -1]

    if length < size.context:
        yield after([*ids, ids[-1]]), "the last token is read twice"
    if length > 1:
        yield after(ids[:-1]), "the last token is not read: the logits are those of the one before it"
    for shift in (shift for distance in range(1, size.context) for shift in (distance, -distance)):
        if 0 <= length - 1 + shift < size.context:
            moved = look_up(lambda at, _, p, shift=shift: torch.where(p == p[-1], p + shift, p))  # type: ignore[misc]
            said = f"the position of the newest token is {length - 1 + shift}, and its own is {length - 1}"
            yield after(ids, Replacement("embedding.position", moved)), f"{said}, as with positions of the batch"
        if shift >= 0 and length + shift <= size.context and not decoding:
            moved = look_up(lambda at, _, p, shift=shift: p + shift)  # type: ignore[misc]
            said = f"its positions begin at {shift}, and not at 0, as with those of the batch"
            yield after(ids, Replacement("embedding.position", moved)), said
    for gone in range(1, length):
        yield after(ids[gone:], start=gone), f"the first {gone} of {length} positions are not seen"


def _crosstalk(seen: Evidence, number: int, step: int) -> str:
    """Serve the plan with other prompts of its neighbours, and say if the logits of the request change."""
    vocabulary = SIZES[seen.size].vocab_size
    changed = [
        each if at == number else replace(each, prompt=tuple((token + 1) % vocabulary for token in each.prompt))
        for at, each in enumerate(seen.plan)
    ]
    engine = seen.subject.new_engine(seen.model, requests=REQUESTS, positions=POSITIONS)
    again = serve(engine, seen.model, changed, watch=True)
    # Every other row has changed with the prompts: a row of both runs is that of this request.
    if step < len(again.rows) and _share_a_row(seen.served.rows[step], again.rows[step]):
        return "its logits are others, and depend on no token of its neighbours"
    return "its logits depend on the tokens of its neighbours"


def _share_a_row(a: Tensor, b: Tensor) -> bool:
    return any(_is_among(row, b) for row in a)
