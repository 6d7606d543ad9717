"""PyTorch's dropouts in a forward pass: recorded, or switched off."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from harness.subjects.model import Model
from harness.subjects.protocols import Subject

DROPOUTS = frozenset(
    (
        *(F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout),
        *(torch.dropout_, torch.feature_dropout, torch.feature_dropout_, torch.alpha_dropout, torch.alpha_dropout_),
    )
)
# The functions that drop attention weights, and where their rate is among the arguments.
FUSED = {F.scaled_dot_product_attention: 4, F.multi_head_attention_forward: 10}


@dataclasses.dataclass(frozen=True)
class DropoutCall:
    """One call that drops something: its rate, and the shape of what it drops; () for nn.MultiheadAttention's."""

    rate: float
    shape: tuple[int, ...]

    @property
    def of_attention(self) -> bool:
        """True if attention weights are dropped: the last two axes are positions."""
        return not self.shape or (len(self.shape) > 2 and self.shape[-1] == self.shape[-2])

    def share(self, ids: Tensor, heads: int) -> float:
        """Return how much of one of GPT-2's dropouts for `ids` (B, T) a call is: 1/H for one head, 1/B for one row.

        Heads may have an axis of their own, (B, H, T, T), or share one with the rows, (B·H, T, T).
        """
        if not self.of_attention:
            return 1 / len(ids) if len(self.shape) == 2 and self.shape[0] == ids.shape[1] else 1
        return min(1.0, math.prod(self.shape[:-2]) / (len(ids) * heads)) if self.shape else 1


class DropoutCalls(TorchFunctionMode):
    """Record the dropouts that are applied, in order, in `calls`, inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[DropoutCall] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        if (rate := _rate(function, args, given)) > 0:
            self.calls.append(DropoutCall(rate, _dropped(function, args, given)))
        return function(*args, **given)


class WithoutDropout(TorchFunctionMode):
    """Switch every dropout of PyTorch's off, whatever its rate, inside the block."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = dict(kwargs or {})
        if function in DROPOUTS:
            return args[0] if args else given["input"]
        if function in FUSED:
            at = FUSED[function]
            args = (*args[:at], 0.0, *args[at + 1 :]) if len(args) > at else args
            given |= {"dropout_p": 0.0} if "dropout_p" in given else {}
        return function(*args, **given)


def without_dropout(model: Model) -> Model:
    """Return the model with every dropout of PyTorch's off in its calls, whatever its rate."""

    def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
        with WithoutDropout():
            return model.calling(module, ids, targets)

    return dataclasses.replace(model, calling=call)


def has_dropout_setting(subject: Subject) -> bool:
    """Return False if the subject has no setting for the rate of a dropout, so that asking for one changes nothing."""
    constructor = getattr(subject, "constructor", None)  # an adapter has none: it says what it does
    return constructor is None or bool(constructor.takes("dropout"))


def draws_numbers(module: nn.Module, run: Callable[[], Tensor]) -> bool:
    """Return True if `run()` gives another tensor after another seed, without PyTorch's dropouts, in training mode."""
    was_training = module.training
    module.train()
    try:
        with torch.random.fork_rng(), torch.no_grad(), WithoutDropout():
            found = []
            for seed in (1, 2):
                torch.manual_seed(seed)
                found.append(run())
    finally:
        module.train(was_training)
    return not torch.equal(*(torch.nan_to_num(tensor) for tensor in found))  # NaN is the same NaN


def _dropped(function: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of what a call drops; of a fused attention, the shape that its weights would have."""
    if function is F.multi_head_attention_forward:
        return ()
    if function is F.scaled_dot_product_attention:
        query, key = args[0] if args else given["query"], args[1] if len(args) > 1 else given["key"]
        return (*query.shape[:-1], key.shape[-2])
    return tuple((args[0] if args else given["input"]).shape)


def _rate(function: Any, args: tuple[Any, ...], given: Mapping[str, Any]) -> float:
    """Return the rate at which a call drops; 0 if it drops nothing."""
    if function in DROPOUTS:
        rate = given.get("p", args[1] if len(args) > 1 else 0.5)
        training = given.get("training", given.get("train", args[2] if len(args) > 2 else True))
        return float(rate) if training else 0.0
    if function in FUSED and (function is F.scaled_dot_product_attention or given.get("training", True)):
        return float(given.get("dropout_p", args[FUSED[function]] if len(args) > FUSED[function] else 0.0))
    return 0.0
