"""The declared GPT-2: GPT-2 with the deviations that a subject declares, which is the oracle while it is judged."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from torch import Tensor

from harness.core.sizes import Size
from harness.subjects.model import Model
from harness.subjects.protocols import Subject


class DeclaredGPT2(Protocol):
    """What the oracle, the probe weights and the formula need to know of the declared deviations."""

    @property
    def operations(self) -> Mapping[str, Callable[..., Any]]:
        """The operations of the formula that are computed differently."""

    @property
    def absent(self) -> frozenset[str]:
        """The families of parameters of GPT-2 that the model does not have, such as `attn.c_attn.bias`."""

    def shapes(self, size: Size) -> Mapping[str, tuple[int, ...]]:
        """Return the shape of every parameter by its published name, those that are absent included."""

    def excess(self, size: Size, subject: Subject, tied: bool = True) -> Mapping[str, int]:
        """Return how many parameters more than GPT-2 the model has, negative if fewer, by family over all layers."""

    def oracle(self, size: Size, state: Mapping[str, Tensor], dtype: str) -> Model:
        """Return the model with the weights `state` in `dtype`."""


# A context variable, because the measures call the oracle themselves and know nothing of deviations.
_declared: contextvars.ContextVar[DeclaredGPT2 | None] = contextvars.ContextVar("declared GPT-2", default=None)


def declared_gpt2() -> DeclaredGPT2 | None:
    """Return the GPT-2 with which the subject is compared at present; None if that is GPT-2 itself."""
    return _declared.get()


def is_declared_absent(family: str) -> bool:
    """Return True if the subject declares to have no parameter of this family, such as `wpe.weight`."""
    gpt2 = _declared.get()
    return gpt2 is not None and family in gpt2.absent


@contextlib.contextmanager
def compared_with(gpt2: DeclaredGPT2 | None) -> Iterator[None]:
    """Compare the subject with this GPT-2 inside the block; None is GPT-2 itself."""
    token = _declared.set(gpt2)
    try:
        yield
    finally:
        _declared.reset(token)
