"""Call a GPT: logits of every position and the model's own loss, in the styles that people write."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError
from harness.subjects.forward_answer import loss_in, unpack
from harness.subjects.forward_search import find_style
from harness.subjects.forward_style import ForwardStyle, call_forward, is_known, seen_last_only, style_of

# A model that returns the last position only, and takes no targets, is called for each prefix, up to this length.
LONGEST_BY_PREFIX = 64


def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the logits (B, T, V) of every position, and the model's own loss or None.

    A class that cannot be called as the names of its parameters say is called in other ways, and remembered. Raises
    SubjectError for a model that returns the last position only, takes no targets, and is given more than
    LONGEST_BY_PREFIX tokens.
    """
    if is_known(module):
        return _call(module, ids, targets, style_of(module))
    try:
        return _call(module, ids, targets, style_of(module))
    except Exception as error:
        try:
            style = find_style(module)
        except SubjectError:
            raise
        except Exception:
            raise error from None
        return _call(module, ids, targets, style)


def without_targets(module: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of a call without targets: of every position, (B, T, V), or of the last, (B, 1, V)."""
    return _answer(module, ids, style_of(module))[0]


def targets_keyword(module: nn.Module) -> str | None:
    """Return the parameter of `forward` that takes targets, from which a loss follows; None if there is none.

    `labels` that the model shifts once more, as Hugging Face's, are none.
    """
    style = style_of(module)
    return None if style.loss_needs else style.targets or None


def why_no_targets(module: nn.Module) -> str:
    """Return why a call with targets gives no loss, as the end of a sentence about the forward pass."""
    style = style_of(module)
    if style.loss_needs:
        return f"takes '{style.targets}' only together with '{style.loss_needs[0]}'"
    return f"takes '{style.targets}' and returns no single loss" if style.targets else "takes no targets"


def _call(module: nn.Module, ids: Tensor, targets: Tensor | None, style: ForwardStyle) -> tuple[Tensor, Tensor | None]:
    keyword = "" if style.loss_needs else style.targets
    if targets is not None and keyword:
        return _answer(module, ids, style, targets)
    if keyword and style.last_only:
        return _answer(module, ids, style, ids)[0], None
    logits, _ = _answer(module, ids, style)
    if logits.ndim == 3 and logits.shape[1] == 1 and ids.shape[1] > 1:
        # nanoGPT returns the last position only, unless it is given targets.
        if keyword:
            seen_last_only(module)
            logits, _ = _answer(module, ids, style, ids)
        elif ids.shape[1] <= LONGEST_BY_PREFIX:
            prefixes = [ids[:, :end].contiguous() for end in range(1, ids.shape[1] + 1)]
            logits = torch.cat([_answer(module, prefix, style)[0] for prefix in prefixes], dim=1)
        else:
            raise SubjectError(
                "the model returns logits of the last position only and takes no targets; expected logits of every "
                "position"
            )
    return logits, None


def _answer(
    module: nn.Module, ids: Tensor, style: ForwardStyle, targets: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return what one call gives; of a model that takes one sequence, one call for each row."""
    if style.one_sequence:
        return _row_by_row(module, ids, style, targets)
    return _one_call(module, ids, style, targets, ids)


def _one_call(
    module: nn.Module, given: Tensor, style: ForwardStyle, targets: Tensor | None, ids: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Call the model with `given`, which is `ids` (B, T), or its only row (T,)."""
    answer = call_forward(module, given, style, **({} if targets is None else {style.targets: targets}))
    try:
        return unpack(answer, ids)
    except SubjectError:
        loss = loss_in(answer)
        if targets is None or loss is None:
            raise
        return unpack(call_forward(module, given, style), ids)[0], loss  # with targets it returns the loss alone


def _row_by_row(
    module: nn.Module, ids: Tensor, style: ForwardStyle, targets: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Return the logits of all rows, and the mean of their losses, weighted by the targets that are not negative."""
    rows = [
        _one_call(module, row, style, None if targets is None else targets[number], row[None])
        for number, row in enumerate(ids)
    ]
    logits = torch.cat([logits for logits, _ in rows])
    if targets is None or any(loss is None for _, loss in rows):
        return logits, None
    counts = (targets >= 0).sum(1).tolist()
    # The loss of a row without any target is 0 / 0.
    losses = [loss * count for (_, loss), count in zip(rows, counts, strict=True) if loss is not None and count]
    return logits, torch.stack(losses).sum() / sum(counts)
