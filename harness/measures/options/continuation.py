"""The continuations of prompts with an option of generate: its name, and the new tokens of each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import MissingAbility, SubjectError
from harness.subjects.model import Model
from harness.subjects.option_names import GENERATE_OPTIONS, own_name
from harness.subjects.protocols import TakesOptions


def option_of(subject: TakesOptions, model: Model, option: str) -> str:
    """Return the parameter of generate that sets an option of GENERATE_OPTIONS. Raises MissingAbility without one."""
    name = own_name(option, GENERATE_OPTIONS, subject.generate_options(model))
    if name is None:
        raise MissingAbility(
            f"generate of {subject.name} has no option '{option}' ({GENERATE_OPTIONS[option][0]}, ...)"
        )
    return name


def rows_of(answer: Any) -> list[Tensor]:
    """Return the ids of each row in what generate returned.

    It is a tensor (N, T), a list of rows, either of these for each prompt, or a tuple that begins with any of them.
    """
    if isinstance(answer, tuple) and answer and (not isinstance(answer[0], Tensor) or answer[0].ndim > 1):
        answer = answer[0]
    try:
        return [torch.as_tensor(row) for row in _rows(answer)]
    except Exception as error:
        raise SubjectError(f"generate returned {type(answer).__name__}; expected ids (rows, tokens)") from error


def _rows(nest: Any) -> Iterator[Any]:
    """Yield the innermost sequences of a nest."""
    for item in nest:
        is_row = item.ndim == 1 if isinstance(item, Tensor) else isinstance(next(iter(item), 0), int)
        yield from [item] if is_row else _rows(item)


def new_tokens(
    subject: TakesOptions, model: Model, ids: Tensor, count: int, options: Mapping[str, Any] | None = None
) -> list[Tensor]:
    """Return the new tokens of each row of a greedy continuation of `ids` (B, T), each up to `count`."""
    plain = rows_of(subject.generate_with(model, ids, count, {}, greedy=True))
    if any(len(row) not in (count, count + ids.shape[1]) for row in plain):
        raise SubjectError(f"generate returned rows of {[len(row) for row in plain]} ids for {count} new tokens")
    start = len(plain[0]) - count  # where it returns the new tokens alone, the prompt is not cut off
    if options is None:
        return [row[start:] for row in plain]
    return [row[start:] for row in rows_of(subject.generate_with(model, ids, count, options, greedy=True))]
