"""Measures of claims about training that need no run: examples of a sentence, and a clipped gradient."""

from __future__ import annotations

import torch

from harness.core.resources import gpt2_tokens, next_token_examples
from harness.core.sizes import SIZES
from harness.oracle.tokens import batch
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure


@measure
def sentence_examples(subject: Subject, *, sentence: str) -> Reading:
    """Return the GPT-2 tokens of a sentence, how many they are, and how many examples of a next token they give.

    The examples are those of the training program's own data set.
    """
    ids = gpt2_tokens(sentence)
    examples = next_token_examples(ids)
    return Reading(
        {"ids": " ".join(map(str, ids)), "tokens": len(ids), "examples": len(examples)},
        details={"targets": [target for _, target in examples]},
    )


@measure
def clipped_gradient(subject: Subject, *, size: str, norm: float, limit: float = 1.0) -> Reading:
    """Return the norm of the subject's gradient before and after torch's clipping, and the cosine between the two.

    The gradient of a batch of random tokens is scaled to `norm` first.
    """
    model = subject.build(SIZES[size], dtype="float64")
    ids, targets = batch(SIZES[size], "random", rows=4, length=24)
    model.loss(ids, targets).backward()
    parameters = [p for p in model.module.parameters() if p.grad is not None]
    whole = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    for parameter in parameters:
        assert parameter.grad is not None
        parameter.grad *= norm / whole.norm()
    before = float(torch.nn.utils.clip_grad_norm_(parameters, limit))
    clipped = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
    cosine = float(torch.nn.functional.cosine_similarity(whole, clipped, dim=0))
    found = {"before": before, "after": float(clipped.norm()), "cosine": cosine}
    return Reading(found, "", {"by": "torch alone"})
