"""What a forward pass returned: logits and loss, found in the containers that people return them in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import SubjectError

LOGITS = ("logits", "lm_logits", "prediction", "predictions", "output", "outputs", "preds")


def unpack(answer: Any, ids: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return logits and loss from a tensor, from a tuple, a dict or an object in any order, or from one in another.

    With `ids` (B, T), logits flattened to (B·T, V) are reshaped to (B, T, V), and (B, V) are the last position's. Of
    several tensors that may be logits, a name decides, or else the largest last axis: the vocabulary is larger than
    the width. Raises SubjectError if there are no logits.
    """
    if isinstance(answer, Tensor) and (answer.ndim > 1 or ids is None):
        return _with_axes(answer, ids), None
    found = [(name, t) for name, t in _tensors(answer) if t.is_floating_point() and t.ndim > 1]
    named = [t for word in LOGITS for name, t in found if name == word]
    deep = [t for _, t in found if t.ndim == 3]
    fitting = [t for t in deep if ids is not None and t.shape[0] == ids.shape[0] and t.shape[1] in (ids.shape[1], 1)]
    flat = [t for _, t in found if t.ndim == 2 and t.numel() > 1]
    logits = named[0] if named else max(fitting or deep or flat, key=lambda t: t.shape[-1], default=None)
    if logits is None:
        raise SubjectError(
            f"calling the model returned {_describe(answer)}; expected logits (batch, time, vocabulary), (logits, "
            "loss), or an object with .logits"
        )
    return _with_axes(logits, ids), loss_in(answer, logits)


def loss_in(answer: Any, logits: Tensor | None = None) -> Tensor | None:
    """Return the loss in an answer: the scalar that is called 'loss', else the first; None if there is none.

    A loss that is a Python number, as `loss.item()` makes one, becomes a tensor, which has no gradient.
    """
    scalars = [(name, t) for name, t in _tensors(answer) if t.numel() == 1 and t is not logits]
    scalars = [(name, t) for name, t in scalars if t.is_floating_point()]
    scalars.sort(key=lambda pair: pair[0] != "loss")  # stable
    return scalars[0][1].reshape(()) if scalars else _number_in(answer)


def _number_in(answer: Any) -> Tensor | None:
    if isinstance(answer, tuple | list):
        found = next((each for each in answer if isinstance(each, float)), None)
    else:
        found = answer.get("loss") if isinstance(answer, Mapping) else getattr(answer, "loss", None)
    return torch.tensor(found) if isinstance(found, float) else None


def token_losses_in(answer: Any, tokens: int) -> Tensor | None:
    """Return the losses (tokens,) of single tokens in an answer; None if no tensor has as many numbers."""
    found = [(name, t) for name, t in _tensors(answer) if t.numel() == tokens and t.is_floating_point()]
    found.sort(key=lambda pair: pair[0] != "loss")  # stable
    return found[0][1].flatten() if found else None


def _tensors(answer: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a nest, each with its name: a key, an attribute, or nothing; the outermost first."""
    if isinstance(answer, Tensor):
        yield name, answer
        return
    if depth > 3:
        return
    items: list[tuple[str, Any]] = []
    if isinstance(answer, Mapping):
        items = [(str(key), value) for key, value in answer.items()]
    elif isinstance(answer, tuple | list):
        fields = getattr(answer, "_fields", [""] * len(answer))
        items = list(zip(fields, answer, strict=True))
    elif answer is not None:
        words = (*LOGITS, "loss", *getattr(answer, "__dict__", {}), *getattr(answer, "__slots__", ()))
        items = [(word, getattr(answer, word, None)) for word in dict.fromkeys(words) if not word.startswith("_")]
    yield from ((key, value) for key, value in items if isinstance(value, Tensor))
    for key, value in items:
        if not isinstance(value, Tensor):
            yield from _tensors(value, key, depth + 1)


def _with_axes(logits: Tensor, ids: Tensor | None) -> Tensor:
    if logits.ndim == 2 and ids is not None:
        batch, time = ids.shape
        if logits.shape[0] == batch * time:
            return logits.view(batch, time, -1)
        if logits.shape[0] == batch:
            return logits[:, None]
    return logits


def _describe(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of ({', '.join(map(_describe, answer))})"
    if isinstance(answer, Mapping):
        return f"a {type(answer).__name__} of {', '.join(map(str, answer))}"
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    return f"a {type(answer).__name__}"
