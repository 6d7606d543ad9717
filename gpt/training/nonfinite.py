"""Where a NaN or an infinity came from: the first module of a forward pass, or the first parameter of a backward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn


class FirstNonFinite:
    """Watches the modules of a model. `where` is the first place, in execution order, that was not finite.

    A module's output is recorded when the module ends, so a part comes before the module that contains it. An input
    that is not finite, after outputs that all were, is what the containing module computed in between.
    """

    def __init__(self) -> None:
        self.where: str | None = None

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Watch every module of `model` inside the block."""
        handles = []
        for name, module in model.named_modules():
            shown = name or "the model"
            handles.append(module.register_forward_pre_hook(self._hook(f"the input of {shown}")))
            handles.append(module.register_forward_hook(self._hook(f"the output of {shown}")))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _hook(self, where: str) -> Any:
        def record(module: nn.Module, *values: Any) -> None:
            # A pre-hook is called with the inputs, a hook with inputs and output: the last argument is the news.
            if self.where is None and not all(_is_finite(tensor) for tensor in _tensors(values[-1])):
                self.where = where

        return record


def first_nonfinite_gradient(model: nn.Module) -> str | None:
    """Return the name of the first parameter, in the order of the backward pass, whose gradient is not finite.

    That order is the reverse of the forward pass: a NaN spreads from the loss to the embeddings, which come last.
    """
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None and not _is_finite(parameter.grad):
            return name
    return None


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, tuple) else []
