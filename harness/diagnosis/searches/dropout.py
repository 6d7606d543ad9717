"""The search for dropouts of GPT-2 that are missing, or have another rate than asked for."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from harness.core.sizes import SIZES
from harness.diagnosis.finding import Finding
from harness.oracle.tokens import batch
from harness.subjects.dropout_calls import DropoutCall, DropoutCalls, draws_numbers, has_dropout_setting
from harness.subjects.protocols import Subject

SIZE = "debug"
RATE = 0.1
LENGTH = 24


def search(subject: Subject) -> list[Finding]:
    """Return which of GPT-2's dropouts is missing or has another rate: the embeddings' sum, and three a block.

    Return [] where the calls do not tell: no rate can be asked for, nothing is dropped, or something is by other means.
    """
    if not has_dropout_setting(subject):
        return []
    calls, others = _calls(subject, RATE), _calls(subject, 2 * RATE)
    if not calls or others is None or len(calls) != len(others):
        return []
    rates = [(call.rate, other.rate) for call, other in zip(calls, others, strict=True)]
    wrong = [pair for pair in rates if abs(pair[0] - RATE) > 1e-9 or abs(pair[1] - 2 * RATE) > 1e-9]
    if wrong:
        return [_another_rate(wrong, len(rates))]
    size = SIZES[SIZE]
    kinds = ["attn" if call.of_attention else "stream" for call in calls]
    if kinds.count("attn") == size.layers * size.heads:
        # Head by head: count the first head's.
        kinds = [kind for n, kind in enumerate(kinds) if kind == "stream" or kinds[:n].count("attn") % size.heads == 0]
    return _missing(kinds, size.layers)


def _calls(subject: Subject, rate: float) -> Sequence[DropoutCall] | None:
    """Return the dropouts of one training pass; None if the model also drops by other means than PyTorch's."""
    model = subject.build(SIZES[SIZE], dropout=rate)
    ids, _ = batch(SIZES[SIZE], "random", rows=2, length=LENGTH)
    if draws_numbers(model.module, lambda: model.logits(ids)):
        return None
    model.module.train()
    recorder = DropoutCalls()
    with recorder, torch.no_grad():
        model.logits_and_loss(ids, ids)  # one pass: `logits` may need two
    return recorder.calls


def _another_rate(wrong: list[tuple[float, float]], count: int) -> Finding:
    """Return the finding for rates other than RATE and its double, which were asked for."""
    first, second = wrong[0]
    evidence = f"{len(wrong)} of {count} dropouts in a training pass, asked for {RATE:g} and for {2 * RATE:g}"
    if first == second:
        return Finding("dropout", "dropout-rate", f"the rate of a dropout is {first:g} whatever is asked for", evidence)
    fault = "dropout-rate-tripled" if abs(first - 3 * RATE) < 1e-9 else "dropout-rate"
    return Finding("dropout", fault, f"a dropout has a rate of {first:g} where {RATE:g} is asked for", evidence)


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
