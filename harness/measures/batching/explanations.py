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
    return explain_logits(seen, number) or explain_choice(seen, number)


def explain_logits(seen: Evidence, number: int) -> str:
    """Return what the first wrong logits of a request are; "" if all are right or none were seen."""
    each, tokens = seen.plan[number], seen.served.tokens[number]
    if not tokens:
        return ""
    right = logits_alone(seen.model, each.prompt, tokens)
    for at, step in enumerate(seen.served.steps[number]):
        rows = seen.served.rows[step]
        if len(rows) and not _is_among(right[at], rows):
            where = f"from token {at} on " if at else ""
            for candidates, say in _mistakes(seen, number, at):
                for row, candidate in enumerate(candidates):
                    # An engine that reads the whole text again has rows in the middle, too: this one chose the token.
                    if int(candidate.argmax()) == tokens[at] and _is_among(candidate, rows):
                        return where + say(row)
            if (gap := _gap(right[at], rows)) <= FEWER_BITS:
                return f"{where}its logits are off by {gap:.0e} of the largest, as with keys and values of fewer bits"
            return _chosen_beside(seen, number) or where + _whose(seen, number, step)
    return ""


def explain_choice(seen: Evidence, number: int) -> str:
    """Return from which logits a request's greedy tokens are chosen, if its own are right.

    A row counts if it explains every token that is not the likeliest after the request's own text.
    """
    tokens, prompt = seen.served.tokens[number], seen.plan[number].prompt
    steps = seen.served.steps[number]
    wrong = (logits_alone(seen.model, prompt, tokens).argmax(-1) != torch.tensor(tokens)).nonzero().flatten().tolist()
    if not wrong:
        return ""
    first = f"token {wrong[0]}"
    if not all(len(seen.served.rows[steps[at]]) for at in wrong):
        return f"{first} is another one (its logits cannot be seen)"
    pads = set.intersection(*(_pads_chosen_after(seen, number, at) for at in wrong))
    if pads:
        return f"its logits are right, and {first} is chosen from those after the padding behind its own text"
    whole = [_after_each_token(seen, other) for other in range(len(seen.plan))]
    before = [int(whole[number][len(prompt) + at - 2].argmax()) if len(prompt) + at > 1 else -1 for at in wrong]
    if before == [tokens[at] for at in wrong]:
        return f"its logits are right, and {first} is chosen from those one token before the end of its text"
    others = [_neighbour_of(seen, number, at, whole) for at in wrong]
    if all(other is not None for other in others):
        return f"its logits are right, and {first} is chosen from those of a neighbour, request {others[0]}"
    known = torch.cat(whole)
    if all(_is_of_no_text(seen.served.rows[steps[at]], tokens[at], known) for at in wrong):
        return f"its logits are right, and {first} is chosen from a row that is after no request's text, as of padding"
    return f"its logits are right, and {first} is not the likeliest of them"


def _chosen_beside(seen: Evidence, number: int) -> str:
    """Return whose logits a request's tokens are chosen from, if its own are not computed; "" if no neighbour's are."""
    tokens = seen.served.tokens[number]
    right = logits_alone(seen.model, seen.plan[number].prompt, tokens)
    wrong = [at for at, token in enumerate(tokens) if int(right[at].argmax()) != token]
    whole = [_after_each_token(seen, other) for other in range(len(seen.plan))]
    others = [_neighbour_of(seen, number, at, whole) for at in wrong]
    if not wrong or any(other is None for other in others):
        return ""
    return f"token {wrong[0]} is chosen from those of a neighbour, request {others[0]}"


def _pads_chosen_after(seen: Evidence, number: int, at: int) -> set[int]:
    """Return the tokens by which a request's text, padded to the length of a longer one, gives its token."""
    tokens, prompt = seen.served.tokens[number], seen.plan[number].prompt
    rows = seen.served.rows[seen.served.steps[number][at]]
    found: set[int] = set()
    for gap in _paddings(seen, number, at):
        logits = _formula(seen)(_padded([*prompt, *tokens[:at]], gap, (), seen))[:, -1]
        likely = (logits.argmax(-1) == tokens[at]).nonzero().flatten().tolist()
        found |= {pad for pad in likely if _is_among(logits[pad], rows)}
    return found


def _neighbour_of(seen: Evidence, number: int, at: int, whole: Sequence[Tensor]) -> int | None:
    """Return the request of whose logits in that step this one's token is the likeliest; None if there is none."""
    step = seen.served.steps[number][at]
    for other, steps in enumerate(seen.served.steps):
        if other != number and step in steps:
            row = whole[other][len(seen.plan[other].prompt) - 1 + steps.index(step)]
            if int(row.argmax()) == seen.served.tokens[number][at] and _is_among(row, seen.served.rows[step]):
                return other
    return None


def _is_of_no_text(rows: Tensor, token: int, known: Tensor) -> bool:
    """Return True if a row (N, V) whose likeliest is the token is after no part of a text, `known` (M, V)."""
    return any(not _is_among(row, known) for row in rows if bool(row.isfinite().all()) and int(row.argmax()) == token)


@torch.no_grad()
def _after_each_token(seen: Evidence, number: int) -> Tensor:
    """Return the logits (T, V) after each token of a request's text, alone."""
    text = [*seen.plan[number].prompt, *seen.served.tokens[number]]
    return seen.model.logits(torch.tensor([text[: seen.model.size.context]]))[0]


def _paddings(seen: Evidence, number: int, at: int) -> list[int]:
    """Return by how much the texts of other requests in the step of a token are longer."""
    step, own = seen.served.steps[number][at], len(seen.plan[number].prompt) + at
    lengths = (
        len(each.prompt) + steps.index(step)
        for each, steps in zip(seen.plan, seen.served.steps, strict=True)
        if step in steps
    )
    return sorted({length - own for length in lengths if length > own})


def _padded(before: Sequence[int], gap: int, behind: Sequence[int], seen: Evidence) -> Tensor:
    """Return ids (V, T) with `gap` tokens of padding in the middle, one row for each token of the vocabulary."""
    pads = torch.arange(SIZES[seen.size].vocab_size)[:, None].expand(-1, gap)
    left, right = (torch.tensor(ids, dtype=torch.int64).expand(len(pads), -1) for ids in (before, behind))
    return torch.cat([left, pads, right], dim=1)


def _is_among(row: Tensor, rows: Tensor) -> bool:
    """Return True if one of the rows (N, V) is that row (V), to rounding in float64."""
    return _gap(row, rows) <= SAME


def _gap(row: Tensor, rows: Tensor) -> float:
    """Return the largest difference of a row (V) from the nearest of the rows (N, V), over its largest value."""
    gaps = (rows - row).abs().amax(-1) / row.abs().max()
    return float(gaps[gaps.isfinite()].min()) if bool(gaps.isfinite().any()) else math.inf


Mistake = tuple[Tensor, Callable[[int], str]]  # logits (N, V) of N ways to make it, and a sentence for each


def _formula(seen: Evidence, *changes: Replacement, start: int = 0) -> Formula:
    weights = {name: tensor.double() for name, tensor in state(seen.size, seen.weights).items()}
    return Formula(SIZES[seen.size], weights, changes, start=start)


def _mistakes(seen: Evidence, number: int, at: int) -> Iterator[Mistake]:
    """Yield the logits (N, V) that known mistakes compute where a request's token `at` is chosen."""
    prompt, decoding = list(seen.plan[number].prompt), at > 0
    ids = [*prompt, *seen.served.tokens[number][:at]]
    size, length = SIZES[seen.size], len(ids)

    def after(rows: Tensor | list[list[int]], *changes: Replacement, start: int = 0) -> Tensor:
        return _formula(seen, *changes, start=start)(torch.as_tensor(rows))[:, -1]

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
        if shift >= 0 and length + shift <= size.context:
            moved = look_up(lambda at, _, p, shift=shift: p + shift)  # type: ignore[misc]
            whose = "as where padding before it counts" if shift in _paddings(seen, number, at) else "as another row's"
            said = f"its positions begin at {shift} instead of 0, {whose}"
            yield after([ids], Replacement("embedding.position", moved)), lambda _, said=said: said  # type: ignore[misc]
    for gone in range(1, length):
        said = f"the first {gone} of its {length} positions are not seen"
        yield after([ids[gone:]], start=gone), lambda _, said=said: said  # type: ignore[misc]
    for gap in _paddings(seen, number, at):
        yield from _padding_seen(seen, after, gap, (), ids, f"{gap} tokens of padding before its own")
    for gap in _paddings(seen, number, 0) if decoding else ():
        said = f"{gap} tokens of padding between its prompt and its answer"
        yield from _padding_seen(seen, after, gap, prompt, ids[len(prompt) :], said)


def _padding_seen(
    seen: Evidence, after: Callable[..., Tensor], gap: int, before: Sequence[int], behind: Sequence[int], said: str
) -> Iterator[Mistake]:
    """Yield the logits (V, V) after a text with each token as its padding, which counts in the positions or does not.

    Padding that does not count has position 0, 1 (as Hugging Face gives it) or that before it.
    """
    rows, first = _padded(before, gap, behind, seen), len(before)
    yield after(rows), lambda _: f"it sees {said}, which count in its positions"
    for place in sorted({0, 1, max(first - 1, 0)}):

        def own(at: object, ids: Tensor, p: Tensor, place: int = place) -> Tensor:
            behind_it = torch.where(p < first + gap, place, p - gap)
            return torch.where(p < first, p, behind_it)

        yield after(rows, Replacement("embedding.position", look_up(own))), lambda _: f"it sees {said}"


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
