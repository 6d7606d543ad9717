"""Variants of any linear layer of a block: its bias, and the layer that its weights come from."""

from __future__ import annotations

from harness.oracle.formula import Operation
from harness.oracle.variants.variant import Variant


def with_biases(name: str, count: int) -> Operation:
    """Return the linear layer with its bias added `count` times."""
    if count == 0:
        return lambda at, x: x @ at[f"{name}.weight"]
    return lambda at, x: x @ at[f"{name}.weight"] + count * at[f"{name}.bias"]


def with_weights_of_layer(name: str, layer: int) -> Operation:
    """Return the linear layer with the weights of one fixed layer of the model."""
    return lambda at, x: x @ at.at(layer)[f"{name}.weight"] + at.at(layer)[f"{name}.bias"]


def linear_variants(name: str, operation: str, *, bias_missing: str) -> tuple[Variant, ...]:
    """Return the variants of the linear layer with the published name `name`, such as `mlp.c_fc`.

    Args:
        name: The published name of the layer within its block.
        operation: The operation of the formula that the layer is.
        bias_missing: The id for a bias that is not added.
    """
    return (
        Variant(bias_missing, operation, f"{name}'s bias is not added", with_biases(name, 0)),
        Variant("bias-added-twice", operation, f"{name}'s bias is added twice", with_biases(name, 2)),
        *(
            Variant(
                "layer-weights-mixed",
                operation,
                f"{name} has the weights of layer {layer}",
                with_weights_of_layer(name, layer),
            )
            for layer in range(3)  # as many as the debug size has
        ),
    )
