"""PyTorch's dropouts in a forward pass, switched off."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
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
