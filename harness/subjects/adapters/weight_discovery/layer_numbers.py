"""The number of the layer in the name of a parameter: the one that takes as many values as there are layers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from harness.core.sizes import Size


@dataclass(frozen=True)
class Numbered:
    """The layer of an own parameter, the number in its name that says so, and what it has in common with the others.

    `without` is the name without that number, and the shape.
    """

    layer: int
    number: int
    without: str


def numbered(module: nn.Module, size: Size) -> dict[str, Numbered]:
    """Return the own parameters with the number of their layer in the name.

    That number is the first one that takes as many values as there are layers, over parameters of one shape whose
    names are equal otherwise.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}
    found: dict[str, Numbered] = {}
    for at in range(1, max((len(re.split(r"(\d+)", name)) for name in shapes), default=0), 2):
        alike: dict[tuple[str, tuple[int, ...]], dict[int, str]] = {}
        for name, shape in shapes.items():
            words = re.split(r"(\d+)", name)
            if at < len(words) and name not in found:
                without = "".join([*words[:at], "#", *words[at + 1 :]])
                alike.setdefault((without, shape), {})[int(words[at])] = name
        for (without, shape), names in alike.items():
            if len(names) == size.layers > 1:
                for layer, number in enumerate(sorted(names)):
                    found[names[number]] = Numbered(layer, number, f"{without} {shape}")
    return found
