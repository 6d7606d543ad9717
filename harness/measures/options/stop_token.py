"""The measure of a stop token: the row that meets it ends, the others go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import Missing, MissingAbility
from harness.measures.cached_model import cached_model
from harness.measures.options.continuation import new_tokens, option_of
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import TakesOptions
from harness.suites.measure_registry import Reading, measure

COUNT = 14  # new tokens
PAD = 3
PROMPTS_TRIED = 20
RIGHT = "right"


@measure
def stop_token(subject: TakesOptions, *, size: str, weights: Weights = "probe", prompt_length: int = 5) -> Reading:
    """Return "right" where generation ends at its stop token as it is defined, or else a description, by place.

    The row that meets it is the greedy text up to it, with or without it. Then it ends, or one number fills it up: that
    of the option for padding, if there is one. The other rows are what they are without it. A stop token in the prompt
    ends nothing. A generate that refuses batches with a stop token is judged by single rows.
    """
    model = cached_model(subject, size, weights)
    name = option_of(subject, model, "stop token")
    prompts, free, ending, at = _ending_row(subject, model, prompt_length)
    token = int(free[ending][at])
    options = _accepted(subject, model, prompts[ending : ending + 1], name, token)
    found: dict[str, str] = {}
    conventions: dict[str, str] = {}
    alone = new_tokens(subject, model, prompts[ending : ending + 1], COUNT, options)
    found["a row alone"] = _ended(alone[0], free[ending], at, None)
    if found["a row alone"] == RIGHT:
        kept = len(alone[0]) > at and int(alone[0][at]) == token
        conventions["the stop token"] = "is part of the text" if kept else "is cut off"
    other = prompts[ending : ending + 1].clone()
    other[0, 1] = token
    after = new_tokens(subject, model, other, COUNT)[0]
    first = _first(after, token)
    got = new_tokens(subject, model, other, COUNT, options)[0]
    found["a stop token in the prompt"] = _ended(got, after, first, None) if first < COUNT else _whole(got, after)
    try:
        rows = new_tokens(subject, model, prompts, COUNT, options)
    except Missing:
        raise
    except Exception as error:
        conventions["a batch"] = f"refused: {describe_error(error)}"
        return Reading(found, details={"conventions": conventions, "hint": conventions["a batch"]})
    found["the row of a batch that ends"] = _ended(rows[ending], free[ending], at, None)
    for n, row in enumerate(rows):
        if n != ending:
            stops = _first(free[n], token)
            if stops < COUNT and free[n][stops + 1 :].unique().numel() < 2:
                continue  # it repeats one token from there on, as padding would
            place = "the other rows of the batch"
            said = _whole(row, free[n]) if stops == COUNT else _ended(row, free[n], stops, None)
            found[place] = said if found.get(place, RIGHT) == RIGHT else found[place]
    try:
        pad = option_of(subject, model, "pad token")
    except MissingAbility:
        return Reading(found, details={"conventions": conventions})
    rows = new_tokens(subject, model, prompts, COUNT, {**options, pad: PAD})
    found[f"{pad}={PAD}"] = _ended(rows[ending], free[ending], at, PAD)
    return Reading(found, details={"conventions": conventions})


def _ending_row(subject: TakesOptions, model: Model, length: int) -> tuple[Tensor, list[Tensor], int, int]:
    """Return prompts (3, T), their greedy texts, and the row and the place of a token that can be the stop token.

    The row meets it there for the first time, and does not repeat one token after it. Another row never meets it.
    """
    for seed in range(PROMPTS_TRIED):
        prompts, _ = batch(model.size, "random", rows=3, length=length, seed=seed)
        free = new_tokens(subject, model, prompts, COUNT)
        for row, text in enumerate(free):
            for at in range(2, COUNT - 4):
                token = int(text[at])
                varied = text[at + 1 :].unique().numel() > 1 and PAD not in text
                others = [other for n, other in enumerate(free) if n != row]
                if varied and _first(text, token) == at and any(_first(o, token) == COUNT for o in others):
                    return prompts, free, row, at
    raise MissingAbility(f"the greedy texts of {subject.name} have no token that only some of them contain")


def _accepted(subject: TakesOptions, model: Model, prompt: Tensor, name: str, token: int) -> dict[str, Any]:
    """Return the option in a form that generate accepts: an id, a list, a set or a tensor of ids."""
    forms: Sequence[Any] = (token, [token], {token}, torch.tensor([token]))
    if name.endswith("s") and not name.endswith("eos"):
        forms = (*forms[1:], forms[0])
    error = ""
    for form in forms:
        try:
            subject.generate_with(model, prompt, COUNT, {name: form}, greedy=True)
        except Missing:
            raise
        except Exception as raised:
            error = error or describe_error(raised)
            continue
        return {name: form}
    raise MissingAbility(f"'{name}' of generate of {subject.name} takes no token id: {error}")


def _first(text: Tensor, token: int) -> int:
    """Return the first place of a token in a text; its length if it does not occur."""
    return next((n for n, each in enumerate(text.tolist()) if each == token), len(text))


def _ended(found: Tensor, text: Tensor, at: int, pad: int | None) -> str:
    """Return "right" for a text that ends at `at`, with or without the stop token there, and is padded after it."""
    if not torch.equal(found[:at], text[:at]):
        return "other tokens before the stop token"
    rest = found[at + 1 :] if len(found) > at and found[at] == text[at] else found[at:]
    if len(rest) > 1 and torch.equal(rest, text[len(text) - len(rest) :]) and len(found) == len(text):
        return f"goes on after its stop token: {rest.tolist()}"
    if rest.unique().numel() > 1:
        return f"goes on after its stop token: {rest.tolist()}"
    return RIGHT if pad is None or bool((rest == pad).all()) else f"is filled with {int(rest[0])}, not {pad}"


def _whole(found: Tensor, text: Tensor) -> str:
    """Return "right" for a text that is whole."""
    if torch.equal(found, text):
        return RIGHT
    same = len(found) < len(text) and torch.equal(found, text[: len(found)])
    return f"ends after {len(found)} of {len(text)} tokens" if same else "other tokens than without a stop token"
