"""The events of a recording: what a training program did, in the order in which it happened."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from harness.core.errors import Missing

IGNORED = -100  # in `Forward.targets`: the position does not count, whatever number the program uses for that

Phase = Literal["train", "eval"]


class NotRecorded(Missing):
    """The recording does not have this: the model was too large for it, or the program ended before; a skip."""


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that the program did. Events are numbered in the order in which they happened."""

    order: int


@dataclass(frozen=True, kw_only=True)
class Forward(Event):
    """One forward pass of the model, with its loss if one was computed from it."""

    step: int
    """The optimizer steps completed before it."""
    phase: Phase
    """"train" if gradients were being recorded, else "eval"."""
    ids: Tensor
    """The token ids, int64 (B, T); empty, (0, 0), if no embedding was seen."""
    targets: Tensor
    """The targets of the loss, int64 (B, T), IGNORED where the loss ignores them; empty if no loss was seen."""
    loss: float
    """What the loss function returned, in nats; the mean of the counted targets for reduction "none"; NaN if unseen."""
    reduction: str = "mean"
    """The reduction of the loss: "mean", "sum" or "none"."""
    label_smoothing: float = 0.0
    """The share of each target that the loss spreads over the vocabulary."""
    unsmoothed: float = float("nan")
    """The mean cross entropy of the counted targets, if the loss spreads a share of them; NaN otherwise."""
    mode: Literal["train", "eval", "mixed"] = "train"
    """The training flags of the model's modules."""
    autocast: str | None = None
    """The type that autocast computes in, for instance "bfloat16"; None if it is off."""
    logits_dtype: str = "float32"
    loss_dtype: str = "float32"
    """The type that the loss is computed in: that of what the loss function returns."""
    rng: str = ""
    """A hash of torch's global CPU generator before the pass."""
    used: bool = False
    """True if a backward pass differentiated its loss."""
    line: str = ""
    """The user's line that called the model or the loss, as `train.py:118: source`."""
    outer_line: str = ""
    """The user's line that called the function of that line."""
    ids_line: str = ""
    """The user's line on which the token ids were chosen; "" if that was not seen, as are the next two."""
    drawn_line: str = ""
    """The user's line that called the function of that line."""
    targets_line: str = ""
    """The user's line on which the targets were chosen."""
    loss_line: str = ""
    """The user's line that called the loss function."""
    mode_line: str = ""
    """The user's line that called `train()` or `eval()` last."""
    weights: tuple[str, ...] = ()
    """Hashes of the parameters of the module that was called, of a pass without gradients; () if they are too many."""

    @property
    def counted(self) -> int:
        """Return the number of targets that are not ignored."""
        return int((self.targets != IGNORED).sum())

    @property
    def has_loss(self) -> bool:
        """Return True if a loss was computed from this pass."""
        return self.targets.numel() > 0

    @property
    def idle(self) -> bool:
        """Return True if gradients were recorded of its loss, and no backward pass used them."""
        return self.phase == "train" and self.has_loss and not self.used

    @property
    def validates(self) -> bool:
        """Return True if nothing is trained on its loss: without gradients, or with idle ones in eval mode."""
        return self.has_loss and (self.phase == "eval" or (self.idle and self.mode == "eval"))

    @property
    def total_loss(self) -> float:
        """Return the sum of the losses of the counted targets, in nats."""
        return self.loss if self.reduction == "sum" else self.loss * self.counted

    @property
    def total_cross_entropy(self) -> float:
        """Return the sum of the cross entropies of the counted targets, in nats, without label smoothing."""
        return self.unsmoothed * self.counted if self.label_smoothing else self.total_loss


def mean_loss(passes: Sequence[Forward], *, smoothed: bool = True) -> float:
    """Return the mean loss over the counted targets of passes, in nats; NaN if none counts.

    `smoothed`: with label smoothing, where the loss has it.
    """
    counted = sum(forward.counted for forward in passes)
    total = math.fsum(each.total_loss if smoothed else each.total_cross_entropy for each in passes)
    return total / counted if counted else math.nan


@dataclass(frozen=True, kw_only=True)
class LookAhead(Event):
    """A pass that was computed again after the run, in float64 and eval mode, with other token ids after a position."""

    change: float
    """The largest change of a logit up to there, relative to the largest logit."""
    line: str = ""
    """The user's line that called the model."""


@dataclass(frozen=True, kw_only=True)
class Backward(Event):
    """One backward pass."""

    step: int
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class MadeNaN(Event):
    """The first call of a step that made a NaN of tensors without one."""

    step: int
    function: str
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Zeroed(Event):
    """One call of `zero_grad`."""

    step: int
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Clip(Event):
    """One call of torch's clipping functions."""

    step: int
    limit: float
    names: tuple[str, ...]
    """The parameters whose gradients were given to it; those without a gradient are among them."""
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Save(Event):
    """A file that the program saved: the path as given, and the keys of what was saved, nested ones joined by dots."""

    step: int
    path: str
    keys: tuple[str, ...]
    line: str = ""
    weights: tuple[str, ...] = ()
    """Hashes of the tensors in it; () if they are too many."""
    trained: tuple[str, ...] = ()
    """Hashes of the parameters that were being trained when it was saved."""
    state_line: str = ""
    """The user's line that called `state_dict()` of the model last."""


@dataclass(frozen=True, kw_only=True)
class Load(Event):
    """A file that the program loaded, as `Save`."""

    step: int
    path: str
    keys: tuple[str, ...]
    line: str = ""


MOST_OF_A_LINE = 8  # streams that one line makes and that are recorded: a line that makes more makes batches


@dataclass(frozen=True, kw_only=True)
class Stream(Event):
    """A stream of tokens that the program read or made."""

    name: str
    """Where it comes from: a file's name, or the function that made it."""
    dtype: str
    """The type that the program stores it in."""
    ids: Tensor
    """int64 (N,): the first ones, if it is a long stream."""
    length: int | None = None
    """The tokens of the whole stream; None if `ids` has all of them."""
    line: str = ""
    """The user's line that read or made it."""

    @property
    def complete(self) -> bool:
        """Return True if `ids` has the whole stream."""
        return self.length is None or self.length == len(self.ids)


@dataclass(frozen=True, kw_only=True)
class Printed(Event):
    """A line that the program printed, and the user's line that printed it."""

    step: int
    text: str
    line: str = ""


@dataclass(frozen=True, kw_only=True)
class Seeded(Event):
    """A call that seeded a global generator, before step `step`, and its line."""

    step: int
    line: str
