"""Variants of tying: what makes head and token embedding two tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from harness.oracle.tokens import batch
from harness.subjects.model import Model


@dataclass(frozen=True)
class TieBreaker:
    """One thing that breaks the tie: the fault's id, one sentence about it, and the module after it is done."""

    fault: str
    says: str
    after: Callable[[Model], nn.Module]


def state_dict_loaded(model: Model) -> nn.Module:
    """Load the module's own state dict."""
    model.module.load_state_dict(model.module.state_dict())
    return model.module


def trained(model: Model) -> nn.Module:
    """Take one step of SGD."""
    ids, targets = batch(model.size, "random", rows=2, length=12)
    model.module.train()
    model.loss(ids, targets).backward()
    torch.optim.SGD(model.module.parameters(), lr=0.1).step()
    return model.module


UNTIED = "head-untied"
TIE_BREAKERS = (
    TieBreaker(UNTIED, "the head has its own matrix; GPT-2's is the token embedding", lambda model: model.module),
    TieBreaker("tie-broken-by-state-dict", "load_state_dict breaks the tie of head and embedding", state_dict_loaded),
    TieBreaker("tie-broken-by-deepcopy", "a deep copy has its own head", lambda model: copy.deepcopy(model.module)),
    TieBreaker("tie-broken-by-device-move", "a move to another dtype or device breaks the tie of head and embedding",
               lambda model: model.module.to(torch.float64)),
    TieBreaker("tie-broken-in-training", "training breaks the tie of head and embedding", trained),
)  # fmt: skip
