"""A mixture of experts behind one interface: outputs, router logits and each expert alone, whatever its style."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import SubjectError
from harness.subjects.float32_as_float64 import in_float64_throughout

# The name of a value that a forward pass returns, or leaves in the module, which is the loss that balances the loads.
BALANCE = re.compile(r"aux|balanc|load_loss|lb_loss|router_loss|l_aux", re.IGNORECASE)
RENORMALISES = (
    *("norm_topk_prob", "renormalize", "renormalise", "normalize_gates", "norm_topk", "normalize_expert_weights"),
    "norm_gates",
)
"""What people call the flag by which the gates of a token are divided by their sum."""


@dataclass(frozen=True)
class ExpertPart:
    """A parameter of one expert: the whole of it, or the entry `index` of a tensor that has one for each expert."""

    parameter: nn.Parameter
    index: int | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """Return the part of a tensor that has the parameter's shape."""
        return tensor if self.index is None else tensor[self.index]


@dataclass
class ExpertLayer:
    """A built mixture of experts, in eval mode.

    The letters: N tokens, C channels, E experts. `router` returns the logits (N, E) of tokens (N, C), `expert` what
    one expert alone makes of tokens, (N, C) -> (N, C), without a gate. `shared` are experts that every token goes
    through without a choice. `per_token` is the number of experts that the module says it chooses, None if it does
    not say. `line` is where its forward is defined. `balance` returns the balance loss of the last call if it is a
    function beside the class.
    """

    module: nn.Module
    width: int
    experts: int
    per_token: int | None
    router: Callable[[Tensor], Tensor]
    expert: Callable[[int, Tensor], Tensor]
    router_parameters: tuple[nn.Parameter, ...]
    expert_parameters: tuple[tuple[ExpertPart, ...], ...]
    shared: tuple[Callable[[Tensor], Tensor], ...] = ()
    line: tuple[str, int] | None = None
    balance: Callable[[Any], Any] | None = None
    description: str = ""
    capacity_factor: float | None = None
    _flat: bool = field(default=False, init=False, repr=False)
    _returned: Any = field(default=None, init=False, repr=False)

    @property
    def device(self) -> torch.device:
        """The device of its parameters; tensors are moved there, and answers are moved back."""
        return next(self.module.parameters()).device

    @property
    def says_that_it_renormalises(self) -> bool:
        """True if a setting of the module, or of a part of it, says that the gates of a token sum to 1."""
        owners = [*self.module.modules(), *(getattr(part, "config", None) for part in self.module.modules())]
        return any(getattr(owner, name, None) is True for owner in owners for name in RENORMALISES)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the layer's output for `x` (B, T, C), of the same shape.

        A layer that takes tokens (N, C) is given them. Raises SubjectError if there is no such output.
        """
        own = x.to(self.device)
        with self._precision():
            if not self._flat:
                try:
                    self._returned = self.module(own)
                except (ValueError, RuntimeError, IndexError):  # not enough values to unpack: it takes (N, C)
                    self._flat = True
            if self._flat:
                self._returned = self.module(own.reshape(-1, own.size(-1)))
        wanted = own.reshape(-1, own.size(-1)).shape
        for value in _values(self._returned).values():
            if isinstance(value, Tensor) and value.shape in (own.shape, wanted):
                return value.reshape(own.shape).to(x.device)
        raise SubjectError(
            f"{type(self.module).__name__} returned nothing of the shape {tuple(own.shape)}, its input's: "
            f"{_described(self._returned)}"
        )

    def router_logits(self, x: Tensor) -> Tensor:
        """Return the router's logits (N, E) of `x` (B, T, C), by its own weights and without noise."""
        with self._precision():
            return self.router(x.reshape(-1, x.size(-1)).to(self.device)).to(x.device)

    def expert_output(self, number: int, x: Tensor) -> Tensor:
        """Return what one expert alone makes of `x` (..., C), as (N, C)."""
        with self._precision():
            found: Tensor = self.expert(number, x.reshape(-1, x.size(-1)).to(self.device)).to(x.device)
        return found

    def shared_output(self, x: Tensor) -> Tensor:
        """Return the sum of the shared experts' outputs, (N, C); zeros without any."""
        tokens = x.reshape(-1, x.size(-1))
        with self._precision():
            outputs: list[Tensor] = [part(tokens.to(self.device)).to(x.device) for part in self.shared]
        return sum(outputs, torch.zeros_like(tokens))

    def balance_loss(self) -> Tensor | None:
        """Return the balance loss of the last call: what it returned or left in the module; None if there is none."""
        found = dict(_values(self._returned, by_name=True))
        for part in self.module.modules():
            attributes = vars(part).items()
            found |= {name: value for name, value in attributes if BALANCE.search(name) and isinstance(value, Tensor)}
            found |= {name: value for name, value in part.named_buffers(recurse=False) if BALANCE.search(name)}
        named = [value for name, value in found.items() if BALANCE.search(name) and _is_scalar(value)]
        returned = _values(self._returned)
        scalars = [value for value in returned.values() if _is_scalar(value)]
        for value in (*named, *scalars):
            if isinstance(value, Tensor):
                return value.reshape(())
        if self.balance is not None:
            with self._precision():
                value = self.balance(self._returned)
            return value.reshape(()) if isinstance(value, Tensor) and value.numel() == 1 else None
        return None

    def _precision(self) -> AbstractContextManager[None]:
        """Make a float64 layer's intermediate tensors float64 too; see `Model.precision`."""
        return in_float64_throughout(self.module)


def _values(returned: Any, *, by_name: bool = False) -> dict[str, Any]:
    """Return the values of what a forward pass returned: of a tuple, a dict or an object, one level deep.

    With `by_name`, only those that have a name.
    """
    if isinstance(returned, Tensor):
        return {} if by_name else {"0": returned}
    if isinstance(returned, Mapping):
        return {str(name): value for name, value in returned.items()}
    if isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields"):
        found = {} if by_name else {str(number): value for number, value in enumerate(returned)}
        for number, value in enumerate(returned):
            if not isinstance(value, Tensor):
                found |= {f"{number}.{name}": inner for name, inner in _values(value, by_name=True).items()}
        return found
    fields = returned._asdict() if hasattr(returned, "_fields") else getattr(returned, "__dict__", {})
    return {str(name): value for name, value in fields.items()}


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()


def _described(returned: Any) -> str:
    shapes = [str(tuple(value.shape)) for value in _values(returned).values() if isinstance(value, Tensor)]
    return ", ".join(shapes) or type(returned).__name__
