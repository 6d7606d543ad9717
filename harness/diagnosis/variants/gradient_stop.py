"""Variants of the backward pass: the places at which a gradient can be stopped without a change of the forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from harness.core.sizes import Size
from harness.oracle.formula import At, Operation, Replacement, operation_of


@dataclass(frozen=True)
class GradientStop:
    """One place where the gradient stops: an operation, the number and the name of its input, and the fault's id.

    `replacement`: the operation with the stop, for one that is not a whole input.
    """

    operation: str
    number: int
    input: str
    fault: str = "gradient-stopped"
    replacement: Operation | None = None

    @property
    def function(self) -> Operation:
        """The operation with the stop."""
        if self.replacement is not None:
            return self.replacement
        right = operation_of(self.operation)

        def detached(at: At, *inputs: Any) -> Any:
            return right(at, *(x.detach() if n == self.number else x for n, x in enumerate(inputs)))

        return detached

    @property
    def is_in_block(self) -> bool:
        """True if the operation exists once in every layer."""
        return self.operation.startswith(("residual", "attn", "mlp", "ln_1", "ln_2"))


INPUT_STOPS = (
    GradientStop("embedding", 0, "the token embeddings"),
    GradientStop("embedding", 1, "the position embeddings"),
    GradientStop("residual.attn", 0, "the skip connection around attention", "residual-detached"),
    GradientStop("residual.attn", 1, "the attention branch", "attention-without-gradient"),
    GradientStop("residual.mlp", 0, "the skip connection around the MLP", "residual-mlp-detached"),
    GradientStop("residual.mlp", 1, "the MLP branch", "mlp-without-gradient"),
    GradientStop("attn.scores", 0, "the queries", "queries-detached"),
    GradientStop("attn.scores", 1, "the keys", "keys-detached"),
    GradientStop("attn.mix", 0, "the attention weights", "attn-weights-detached"),
    GradientStop("attn.mix", 1, "the values", "values-detached"),
    GradientStop("attn.softmax", 0, "the scores"),
    GradientStop("attn.qkv", 0, "attention's input"),
    GradientStop("attn.c_proj", 0, "the merged heads"),
    GradientStop("ln_1", 0, "ln_1's input"),
    GradientStop("ln_2", 0, "ln_2's input"),
    GradientStop("ln_f", 0, "ln_f's input"),
    GradientStop("mlp.c_fc", 0, "the MLP's input"),
    GradientStop("mlp.activation", 0, "the activation's input"),
    GradientStop("mlp.c_proj", 0, "the activation's output"),
    GradientStop("head", 0, "the head's input", "head-detached"),
)
OTHER_STOPS = (
    GradientStop("embedding", 0, "the embeddings' sum", "embedding-detached",
                 lambda at, token, position: (token + position).detach()),
    GradientStop("head", 1, "the head's weight, which is the token embedding",
                 replacement=lambda at, x: x @ at["wte.weight"].detach().mT),
    GradientStop("embedding.token", 0, "the token embedding",
                 replacement=lambda at, ids: at["wte.weight"].detach()[ids]),
)  # fmt: skip


def gradient_stops(size: Size) -> Iterator[tuple[GradientStop, Replacement]]:
    """Yield every stop and its change: in all layers, then in each layer, then the other stops."""
    for layer in (None, *range(size.layers)):
        for stop in INPUT_STOPS:
            if layer is None or stop.is_in_block:
                yield stop, Replacement(stop.operation, stop.function, layer)
    for stop in OTHER_STOPS:
        yield stop, Replacement(stop.operation, stop.function)
