"""How a GPT is called and what it answers, in the styles that people write."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from harness.errors import SubjectError


def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Logits (B, T, V) of every position, and the model's own loss where it gives one (None otherwise)."""
    keyword = _targets_keyword(module)
    if targets is not None:
        return unpack(module(ids, **{keyword: targets}) if keyword else module(ids))
    logits, loss = unpack(module(ids))
    if keyword and logits.ndim == 3 and logits.shape[1] == 1 and ids.shape[1] > 1:
        # nanoGPT answers with the last position only, unless it is given targets.
        logits, loss = unpack(module(ids, **{keyword: ids}))
    return logits, loss


def _targets_keyword(module: nn.Module) -> str | None:
    """The parameter of `forward` that takes targets, already shifted. `labels` is not it: Hugging Face shifts those."""
    parameters = inspect.signature(module.forward).parameters
    return next((name for name in ("targets", "target", "y", "tgt") if name in parameters), None)


def unpack(answer: Any) -> tuple[Tensor, Tensor | None]:
    """Logits and loss from a tensor, a tuple or an object with `.logits`."""
    if isinstance(answer, Tensor):
        return answer, None
    if hasattr(answer, "logits"):
        return answer.logits, getattr(answer, "loss", None)
    if isinstance(answer, tuple | list) and answer:
        tensors = [item for item in answer if isinstance(item, Tensor)]
        logits = next((t for t in tensors if t.ndim == 3), None)
        loss = next((t for t in tensors if t.ndim == 0), None)
        if logits is not None:
            return logits, loss
    raise SubjectError(
        f"calling the model gave {_described(answer)}; expected logits (batch, time, vocabulary), (logits, loss), "
        "or an object with .logits"
    )


def _described(answer: Any) -> str:
    if isinstance(answer, tuple | list):
        return f"a {type(answer).__name__} of ({', '.join(map(_described, answer))})"
    if isinstance(answer, Tensor):
        return f"a tensor of shape {tuple(answer.shape)}"
    return f"a {type(answer).__name__}"
