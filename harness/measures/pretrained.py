"""Measures of GPT-2's released weights, against published results."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.resources import text_tokens
from harness.core.sizes import SIZES
from harness.oracle.probe_weights import Weights, state
from harness.subjects.build import build_with_weights
from harness.subjects.protocols import Generates, Subject
from harness.suites.measure_registry import Reading, measure

END_OF_TEXT = 50256
NEWLINE, TWO_NEWLINES = 198, 628
# From llm.c, test_gpt2.c and dev/test: ten AdamW steps on one batch, as ((beta2, weight decay, gradient norm to clip
# at), losses).
LLM_C = {
    "test": ((0.999, 0.01, None),
             [5.270007, 4.059707, 3.375123, 2.800783, 2.315382, 1.849029, 1.394656, 0.999147, 0.624080, 0.376511]),
    "train": ((0.95, 0.0, 1.0),
              [5.270009, 4.060681, 3.320085, 2.717550, 2.181066, 1.653923, 1.168050, 0.736873, 0.401021, 0.187493]),
}  # fmt: skip


@measure
def llm_c_losses(subject: Subject, *, recipe: str, size: str = "124M", weights: Weights = "pretrained") -> Reading:
    """Return the losses of ten training steps, with those that llm.c publishes for the same weights and tokens."""
    (beta2, decay, clip), published = LLM_C[recipe]
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    length = min(64, SIZES[size].context)
    stream = llm_c_tokens(text_tokens())[: 4 * length + 1] % SIZES[size].vocab_size
    ids, targets = stream[:-1].view(4, length), stream[1:].view(4, length)
    optimizer = torch.optim.AdamW(model.module.parameters(), lr=1e-4, betas=(0.9, beta2), eps=1e-8, weight_decay=decay)
    losses = {}
    for step in range(len(published)):
        optimizer.zero_grad()
        loss = model.loss(ids, targets)
        loss.backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.module.parameters(), clip)
        optimizer.step()
        losses[f"step {step}"] = float(loss.detach())
    return Reading(losses, "nats", {"predicted": dict(zip(losses, published, strict=True))})


@measure
def greedy_tokens(
    subject: Generates, *, prompt: list[int], new_tokens: int, size: str = "124M", weights: Weights = "pretrained"
) -> Reading:
    """Return the prompt and its greedy continuation, as ids separated by spaces."""
    model = build_with_weights(subject, SIZES[size], state(size, weights))
    answer = subject.generate(model, torch.tensor([prompt]), new_tokens, temperature=0.0)
    return Reading(" ".join(map(str, answer[0].tolist())), "token ids")


def llm_c_tokens(stream: Tensor) -> Tensor:
    """Return the tokens of TinyShakespeare as llm.c packs them: each section begins with the end-of-text token.

    llm.c encodes section by section, so the two newlines between sections are one token; they are two tokens in a
    text that is encoded as a whole.
    """
    breaks = (stream[:-1] == NEWLINE) & (stream[1:] == NEWLINE)
    packed = stream.clone()
    packed[:-1][breaks] = TWO_NEWLINES
    packed[1:][breaks] = END_OF_TEXT
    return torch.cat([torch.tensor([END_OF_TEXT]), packed])
