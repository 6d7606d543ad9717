"""Variants of the loss: what people compute instead of the mean cross entropy of the next tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

IGNORED = -100  # PyTorch's default `ignore_index`
Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (B, T, V), targets (B, T), ids (B, T)


@dataclass(frozen=True)
class LossVariant:
    """One way to compute the loss differently: the fault's id, one sentence about it, and the loss."""

    fault: str
    says: str
    loss: Loss


def cross_entropy(logits: Tensor, targets: Tensor, **settings: float) -> Tensor:
    """Return the mean cross entropy in nats of logits (..., V) and targets (...)."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **settings)  # type: ignore[arg-type]


def summed(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of the cross entropies in nats."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


def smoothed(smoothing: float) -> Loss:
    """Return the cross entropy with label smoothing."""
    return lambda x, t, i: cross_entropy(x, t, label_smoothing=smoothing)


def definition(x: Tensor, t: Tensor, i: Tensor) -> Tensor:
    """Return the loss of a right GPT: the mean cross entropy in nats."""
    return cross_entropy(x, t)


# x: logits (B, T, V), t: targets (B, T), already shifted, i: ids (B, T)
LOSS_VARIANTS = (
    LossVariant("labels-shifted-twice", "the targets, already shifted, are shifted once more",
                lambda x, t, i: cross_entropy(x[:, :-1], t[:, 1:])),
    LossVariant("labels-not-shifted", "the targets are the inputs: the model learns to copy",
                lambda x, t, i: cross_entropy(x, i)),
    LossVariant("labels-shifted-backwards", "every position predicts the token before it",
                lambda x, t, i: cross_entropy(x[:, 1:], i[:, :-1])),
    LossVariant("labels-shifted-backwards", "the targets are shifted in the wrong direction",
                lambda x, t, i: cross_entropy(x[:, 1:], t[:, :-1])),
    LossVariant("labels-roll-wraparound", "the targets are rolled: the last position predicts the first token",
                lambda x, t, i: cross_entropy(x, i.roll(-1, 1))),
    LossVariant("labels-roll-wraparound", "the targets are rolled once more",
                lambda x, t, i: cross_entropy(x, t.roll(-1, 1))),
    LossVariant("labels-roll-wraparound", "the targets are rolled backwards",
                lambda x, t, i: cross_entropy(x, t.roll(1, 1))),
    LossVariant("labels-row-mismatch", "the targets belong to another row of the batch",
                lambda x, t, i: cross_entropy(x, t.roll(1, 0))),
    LossVariant("loss-wrong-class-dim", "logits (B, T, V) are reshaped to (B, V, T), not transposed",
                lambda x, t, i: F.cross_entropy(x.reshape(x.shape[0], x.shape[2], x.shape[1]), t)),
    LossVariant("loss-ignore-index-real-token", "targets that are token 0 are ignored",
                lambda x, t, i: cross_entropy(x, t.masked_fill(t == 0, IGNORED))),
    LossVariant("loss-summed", "the loss is summed, not averaged",
                lambda x, t, i: summed(x, t)),
    LossVariant("loss-summed", "the loss is summed over time and averaged over rows",
                lambda x, t, i: summed(x, t) / t.shape[0]),
    LossVariant("loss-summed", "the loss is summed over rows and averaged over time",
                lambda x, t, i: summed(x, t) / t.shape[1]),
    LossVariant("loss-in-bits", "the loss is in bits, not in nats",
                lambda x, t, i: cross_entropy(x, t) / math.log(2)),
    LossVariant("loss-scaled", "the loss is halved",
                lambda x, t, i: cross_entropy(x, t) / 2),
    LossVariant("loss-scaled", "the loss is divided by the size of the vocabulary",
                lambda x, t, i: cross_entropy(x, t) / x.shape[-1]),
    LossVariant("loss-of-probabilities", "a softmax is applied before the cross entropy",
                lambda x, t, i: cross_entropy(x.softmax(-1), t)),
    LossVariant("loss-last-position-only", "only the last position counts",
                lambda x, t, i: cross_entropy(x[:, -1], t[:, -1])),
    LossVariant("loss-last-target-dropped", "the last position is left out",
                lambda x, t, i: cross_entropy(x[:, :-1], t[:, :-1])),
    LossVariant("loss-position-left-out", "the first position is left out",
                lambda x, t, i: cross_entropy(x[:, 1:], t[:, 1:])),
    LossVariant("loss-row-left-out", "only the first row of the batch counts",
                lambda x, t, i: cross_entropy(x[:1], t[:1])),
    LossVariant("loss-is-perplexity", "the loss is the perplexity",
                lambda x, t, i: cross_entropy(x, t).exp()),
    LossVariant("logits-low-precision", "the loss is computed in bfloat16",
                lambda x, t, i: cross_entropy(x.bfloat16(), t).double()),
    LossVariant("logits-low-precision", "the loss is computed in float16",
                lambda x, t, i: cross_entropy(x.half(), t).double()),
    LossVariant("logits-low-precision", "the logits are rounded to bfloat16 for the loss",
                lambda x, t, i: cross_entropy(x.bfloat16().double(), t)),
    LossVariant("loss-averaged-over-pads", "ignored targets (-100) count in the average's denominator",
                lambda x, t, i: summed(x, t) / t.numel()),
    LossVariant("loss-mask-dropped", "ignored targets (-100) count as token 0",
                lambda x, t, i: cross_entropy(x, t.clamp(min=0))),
    LossVariant("loss-label-smoothing-left-on", "label smoothing of 0.1 is on", smoothed(0.1)),
    LossVariant("loss-label-smoothing-left-on", "label smoothing of 0.05 is on", smoothed(0.05)),
    LossVariant("loss-label-smoothing-left-on", "label smoothing of 0.2 is on", smoothed(0.2)),
    LossVariant("loss-label-smoothing-left-on", "label smoothing of 0.01 is on", smoothed(0.01)),
)  # fmt: skip
