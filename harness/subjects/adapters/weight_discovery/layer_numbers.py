"""The number of the layer in the name of a parameter: the one that takes as many values as there are layers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from harness.core.sizes import Size


@dataclass(frozen=True)
class Numbered:
    """The layer of an own parameter, the number in its name that says so, and its name without that number."""

    layer: int
    number: int
    without: str


def numbered(module: nn.Module, size: Size) -> dict[str, Numbered]:
    """Return the own parameters with the number of their layer in the name.

    That number is the first one that takes as many values as there are layers.
    """
    alike: dict[str, list[str]] = {}
    for name, _ in module.named_parameters():
        alike.setdefault(re.sub(r"\d+", "#", name), []).append(name)
    found = {}
    for group in alike.values():
        words = {name: re.split(r"(\d+)", name) for name in group}
        for at in range(1, len(words[group[0]]), 2):
            values = sorted({int(word[at]) for word in words.values()})
            if len(values) == size.layers > 1:
                for name, word in words.items():
                    without = "".join([*word[:at], "#", *word[at + 1 :]])
                    found[name] = Numbered(values.index(int(word[at])), int(word[at]), without)
                break
    return found
