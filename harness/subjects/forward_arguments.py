"""The values that a further argument of a forward pass may need: caches, masks, flags and numbers."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Argument:
    """A value for a further argument: as text, and a function of the module and its ids that makes it anew."""

    text: str
    make: Callable[[nn.Module, Tensor], Any]


def layers_of(module: nn.Module) -> int:
    """Return how many layers a module has, by the numbers in the names of its parameters."""
    alike: dict[str, set[str]] = {}
    for name, _ in module.named_parameters(remove_duplicate=False):
        words = re.split(r"(\d+)", name)
        if len(words) > 1:
            alike.setdefault("#".join([words[0], *words[2:]]), set()).add(words[1])
    return max(map(len, alike.values()), default=1)


def _square(ids: Tensor) -> Tensor:
    return torch.ones(ids.shape[-1], ids.shape[-1], dtype=torch.bool, device=ids.device)


def _additive(module: nn.Module, ids: Tensor) -> Tensor:
    dtype = next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())
    return torch.zeros_like(_square(ids), dtype=dtype).masked_fill(_square(ids).triu(1), float("-inf"))


NONE = Argument("None", lambda module, ids: None)
CACHES = (
    Argument("[None] * layers", lambda module, ids: [None] * layers_of(module)),
    Argument("(None,) * layers", lambda module, ids: (None,) * layers_of(module)),
    Argument("{}", lambda module, ids: {}),
    Argument("[]", lambda module, ids: []),
    Argument("[{}, ...], one a layer", lambda module, ids: [{} for _ in range(layers_of(module))]),
    Argument("[[], ...], one a layer", lambda module, ids: [[] for _ in range(layers_of(module))]),
    Argument("[(None, None)] * layers", lambda module, ids: [(None, None)] * layers_of(module)),
    Argument("[[None, None], ...], one a layer", lambda module, ids: [[None, None] for _ in range(layers_of(module))]),
    Argument("{layer: None}", lambda module, ids: dict.fromkeys(range(layers_of(module)))),
)
PADDING = (
    Argument("ones (B, T)", lambda module, ids: torch.ones_like(ids)),
    Argument("True (B, T)", lambda module, ids: torch.ones_like(ids, dtype=torch.bool)),
)
MASKS = (
    *PADDING,
    Argument("tril (T, T), True where it may attend", lambda module, ids: _square(ids).tril()),
    Argument("triu (T, T), True where it may not attend", lambda module, ids: _square(ids).triu(1)),
    Argument("(T, T), -inf where it may not attend", lambda module, ids: _additive(module, ids)),
    Argument("tril (1, 1, T, T), True where it may attend", lambda module, ids: _square(ids).tril()[None, None]),
)
FLAGS = (Argument("False", lambda module, ids: False), Argument("True", lambda module, ids: True))
NUMBERS = (
    Argument("0", lambda module, ids: 0),
    Argument("T", lambda module, ids: ids.shape[-1]),
    Argument("0.0", lambda module, ids: 0.0),
    Argument("1.0", lambda module, ids: 1.0),
)
IDS = (
    Argument("zeros (B, T)", lambda module, ids: torch.zeros_like(ids)),
    Argument("the ids", lambda module, ids: ids),
    Argument("positions (B, T)", lambda module, ids: torch.arange(ids.shape[-1], device=ids.device).expand(ids.shape)),
    Argument("positions (T,)", lambda module, ids: torch.arange(ids.shape[-1], device=ids.device)),
    Argument("the device", lambda module, ids: ids.device),
)
# A part of the name of a parameter says which values are tried first. All others are tried after them.
LIKELY = (
    (r"^use_|^return_|^is_|^do_|^need|^output_|train|verbose|causal|infer", FLAGS),
    (r"cache|past|kv|memor|mems|state", (NONE, *CACHES)),
    (r"mask", (NONE, *MASKS)),
    (r"device", IDS[-1:]),
    (r"drop|prob|rate", NUMBERS[2:3]),
    (r"scale|temperature", NUMBERS[3:]),
    (r"pos|start|offset|step|len|layer|idx|size", NUMBERS[:2]),
    (r"seg|type|label|target|tgt", IDS),
)


def candidates(name: str) -> list[Argument]:
    """Return the values to try for a parameter of this name, the likeliest first."""
    likely = [argument for pattern, group in LIKELY if re.search(pattern, name.lower()) for argument in group]
    return list(dict.fromkeys((*likely, NONE, *FLAGS, *NUMBERS, *MASKS, *CACHES, *IDS)))
