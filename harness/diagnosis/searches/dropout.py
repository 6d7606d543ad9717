"""The search for dropouts of GPT-2 that are missing, have another rate, or are active in eval mode."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.oracle.tokens import batch
from harness.subjects.protocols import Subject

SIZE = "debug"
RATE = 0.1
LENGTH = 24  # attention weights are (..., LENGTH, LENGTH), which distinguishes them from the residual stream


def search(subject: Subject) -> list[Finding]:
    """Return which of GPT-2's dropouts is missing or has another rate: the embeddings' sum, and three a block."""
    size = SIZES[SIZE]
    model = subject.build(size, dropout=RATE)
    ids, _ = batch(size, "random", rows=2, length=LENGTH)
    model.module.train()
    with DropoutRecorder() as dropouts, torch.no_grad():
        model.logits(ids)
    if not dropouts.calls:
        return []  # the subject has no dropout, or does not use PyTorch's
    wrong = [rate for _, rate in dropouts.calls if abs(rate - RATE) > 1e-9]
    if wrong:
        cause = f"a dropout has a rate of {wrong[0]:g}, expected {RATE:g}"
        fault = "dropout-rate-tripled" if abs(wrong[0] - 3 * RATE) < 1e-9 else "dropout-rate"
        return [Finding("dropout", fault, cause, "")]
    kinds = ["attn" if is_attention(shape) else "stream" for shape, _ in dropouts.calls]
    if kinds.count("attn") == size.layers * size.heads:  # head by head: count the first head's
        kinds = [kind for n, kind in enumerate(kinds) if kind == "stream" or kinds[:n].count("attn") % size.heads == 0]
    return _missing(kinds, size.layers)


def _missing(kinds: list[str], layers: int) -> list[Finding]:
    """Return the findings for the dropouts of one forward pass, "attn" or "stream" each, in order."""
    evidence = f"in training mode {len(kinds)} dropouts are applied; GPT-2 has {1 + 3 * layers}"
    found = []
    if kinds.count("attn") < layers:
        found.append(Finding("dropout", "attn-dropout-missing", "attention weights have no dropout", evidence))
    if kinds.count("stream") < 1 + 2 * layers:
        starts_with_attention = bool(kinds) and kinds[0] == "attn"
        if starts_with_attention and kinds.count("stream") == 2 * layers:
            found.append(Finding("dropout", "embed-dropout-missing", "the embeddings' sum has no dropout", evidence))
        else:
            found.append(Finding("dropout", "resid-dropout-missing", "a residual branch has no dropout", evidence))
    return found


def is_attention(shape: tuple[int, ...]) -> bool:
    """Return True for the shape of attention weights, (..., LENGTH, LENGTH)."""
    return shape.count(LENGTH) > 1


class DropoutRecorder(TorchFunctionMode):
    """Record the shape and the rate of every dropout that is applied, in order, inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[tuple[int, ...], float]] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if function in (torch.nn.functional.dropout, torch.dropout, torch.dropout_):
            rate = given.get("p", args[1] if len(args) > 1 else 0.5)
            training = given.get("training", given.get("train", args[2] if len(args) > 2 else True))
            if rate and training:
                self.calls.append((tuple(args[0].shape), rate))
        elif function is torch.nn.functional.scaled_dot_product_attention:
            self._add_attention(given.get("dropout_p", args[4] if len(args) > 4 else 0.0))
        elif function is torch.nn.functional.multi_head_attention_forward and given.get("training", True):
            self._add_attention(given.get("dropout_p", args[10] if len(args) > 10 else 0.0))
        return function(*args, **given)

    def _add_attention(self, rate: float) -> None:
        if rate:
            self.calls.append(((LENGTH, LENGTH), rate))
