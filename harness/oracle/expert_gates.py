"""The gates of a mixture of experts by definition, and by the mistakes that people make: tables of functions.

Each takes the router's logits (N, E) of N tokens and k, and returns gates (N, E), 0 for an expert that is not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

Gates = Callable[[Tensor, int], Tensor]


def chosen(logits: Tensor, k: int) -> Tensor:
    """Return True for the k experts with the largest logits of each token, (N, E)."""
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, logits.topk(k, dim=-1).indices, True)


def _kept(values: Tensor, logits: Tensor, k: int) -> Tensor:
    return values.masked_fill(~chosen(logits, k), 0.0)


def softmax_of_chosen(logits: Tensor, k: int) -> Tensor:
    """Return the softmax over the k chosen logits; the same as all probabilities, chosen and divided by their sum."""
    return logits.masked_fill(~chosen(logits, k), -math.inf).softmax(dim=-1)


def _divided(values: Tensor) -> Tensor:
    return values / values.sum(dim=-1, keepdim=True)


# How people define them, each with the paper or program that does. The first is the one that equal experts make dense.
SOFTMAX_OF_CHOSEN = "softmax over the chosen"
CONVENTIONS: dict[str, Gates] = {
    SOFTMAX_OF_CHOSEN: softmax_of_chosen,  # Shazeer et al. 2017, Mixtral
    "softmax over all, not renormalised": lambda logits, k: _kept(logits.softmax(-1), logits, k),  # Switch, OLMoE
    "sigmoid": lambda logits, k: _kept(logits.sigmoid(), logits, k),  # Llama 4
    "sigmoid, renormalised": lambda logits, k: _divided(_kept(logits.sigmoid(), logits, k)),  # DeepSeek-V3
}
RENORMALISED = (SOFTMAX_OF_CHOSEN, "sigmoid, renormalised")


def _shifted(logits: Tensor, k: int) -> Tensor:
    """Return the gates with those of a token's k slots reversed: each weighs another slot's expert."""
    best = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, best.indices, best.values.softmax(-1).flip(-1))


def _twice_the_best(logits: Tensor, k: int) -> Tensor:
    best = logits.topk(k, dim=-1)
    gates = torch.zeros_like(logits)
    return gates.scatter_add(-1, best.indices[:, :1].expand(-1, k), best.values.softmax(-1))


def _last_slot(logits: Tensor, k: int) -> Tensor:
    best = logits.topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, best.indices[:, -1:], best.values.softmax(-1)[:, -1:])


def _highest_number(logits: Tensor, k: int) -> Tensor:
    """Return the gates if each expert in turn overwrites what those before it have computed."""
    gates = softmax_of_chosen(logits, k)
    last = torch.arange(logits.size(-1)).expand_as(logits).masked_fill(gates == 0, -1).argmax(dim=-1, keepdim=True)
    return torch.zeros_like(gates).scatter(-1, last, gates.gather(-1, last))


def _of_slot(slot: int) -> Gates:
    """Return the gates if all of a token's experts have that of one slot."""

    def gates(logits: Tensor, k: int) -> Tensor:
        best = logits.topk(k, dim=-1)
        own = best.values.softmax(-1)[:, slot, None].expand(-1, k)
        return torch.zeros_like(logits).scatter(-1, best.indices, own)

    return gates


def _divided_over_tokens(logits: Tensor, k: int) -> Tensor:
    """Return the gates if those of a slot are divided by their sum over the tokens."""
    best = logits.softmax(-1).topk(k, dim=-1)
    return torch.zeros_like(logits).scatter(-1, best.indices, best.values / best.values.sum(0))


def over_tokens(logits: Tensor, k: int, rows: int) -> Iterator[Tensor]:
    """Yield the gates (N, E) of every softmax over tokens: those of all rows or of each, before or after the choice.

    The choice is by the logits or by what the softmax gave, and the gates may be renormalised over a token's experts.
    """
    for groups in (1, rows):
        probabilities = _softmax_of_groups(logits, groups)
        for by in (logits, probabilities):
            gates = _kept(probabilities, by, k)
            yield gates
            yield _divided(gates)
        best = logits.topk(k, dim=-1)
        slots = _softmax_of_groups(best.values, groups)
        for own in (slots, _divided(slots)):
            yield torch.zeros_like(logits).scatter(-1, best.indices, own)


def _softmax_of_groups(values: Tensor, groups: int) -> Tensor:
    return values.view(groups, -1, values.size(-1)).softmax(1).view_as(values)  # over T of (B, T, E)


def _without(gates: Tensor, number: int) -> Tensor:
    gates = gates.clone()
    gates[:, number] = 0.0
    return gates


# What a mistake makes of them: the catalogue's id, what is said of it, the gates.
MISTAKES: tuple[tuple[str, str, Gates], ...] = (
    (
        "experts-masked-with-zero",
        "the logits that are not chosen are 0 in the softmax, not -inf",
        lambda logits, k: logits.masked_fill(~chosen(logits, k), 0.0).softmax(-1),
    ),
    (
        "experts-masked-with-zero",
        "the logits that are not chosen are 0 in the softmax over all, which is not renormalised",
        lambda logits, k: _kept(logits.masked_fill(~chosen(logits, k), 0.0).softmax(-1), logits, k),
    ),
    ("experts-all-computed", "every expert has its probability: no choice", lambda logits, k: logits.softmax(-1)),
    ("experts-gate-missing", "the outputs are added without gates", lambda logits, k: chosen(logits, k).to(logits)),
    ("experts-gate-mean", "each gate is 1/k", lambda logits, k: chosen(logits, k).to(logits) / k),
    ("experts-gate-is-logit", "the gates are the logits themselves", lambda logits, k: _kept(logits, logits, k)),
    ("experts-gate-twice", "each gate is squared", lambda logits, k: softmax_of_chosen(logits, k).square()),
    ("experts-gate-of-other-slot", "each expert has the gate of another one of the token's", _shifted),
    ("experts-gate-of-one-slot", "all of a token's experts have the gate of its first one", _of_slot(0)),
    ("experts-gate-of-one-slot", "all of a token's experts have the gate of its last one", _of_slot(-1)),
    ("experts-first-twice", "the first choice is computed in every slot", _twice_the_best),
    ("experts-last-slot-only", "only the last of a token's experts is left", _last_slot),
    ("experts-overwrite", "an expert overwrites what those before it have computed", _highest_number),
    (
        "experts-gate-over-tokens",
        "the gates are divided by their sum over the tokens, not over a token's experts",
        lambda logits, k: _kept(logits.softmax(-1), logits, k) / _kept(logits.softmax(-1), logits, k).sum(0),
    ),
    (
        "experts-gate-over-tokens",
        "the gates of a slot are divided by their sum over the tokens, not those of a token by theirs",
        _divided_over_tokens,
    ),
    (
        "experts-lowest-chosen",
        "the experts with the smallest logits are chosen",
        lambda logits, k: logits.masked_fill(~chosen(-logits, k), -math.inf).softmax(-1),
    ),
    ("experts-k-plus-one", "k + 1 experts are used", lambda logits, k: softmax_of_chosen(logits, k + 1)),
    ("experts-k-minus-one", "k - 1 experts are used", lambda logits, k: softmax_of_chosen(logits, max(1, k - 1))),
    (
        "experts-last-never-used",
        "the last expert is never computed",
        lambda logits, k: _without(softmax_of_chosen(logits, k), -1),
    ),
    (
        "experts-first-never-used",
        "expert 0 is never computed",
        lambda logits, k: _without(softmax_of_chosen(logits, k), 0),
    ),
    (
        "experts-order-permuted",
        "each token's outputs are those of the next expert",
        lambda logits, k: softmax_of_chosen(logits, k).roll(1, dims=-1),
    ),
    (
        "experts-order-permuted",
        "each token's outputs are those of the expert before",
        lambda logits, k: softmax_of_chosen(logits, k).roll(-1, dims=-1),
    ),
    (
        "experts-order-permuted",
        "the experts are in reverse order",
        lambda logits, k: softmax_of_chosen(logits, k).flip(-1),
    ),
)


def balance_terms(logits: Tensor, k: int) -> dict[str, Tensor]:
    """Return the balance losses that people mean, without their weight, each a scalar.

    f is a count, so no gradient comes through it.
    """
    E = logits.size(-1)
    probabilities = logits.softmax(-1).mean(0)  # (E)
    f = F.one_hot(logits.topk(k, dim=-1).indices, E).sum(1).to(logits).mean(0) / k
    first = F.one_hot(logits.argmax(-1), E).to(logits).mean(0)
    importance = softmax_of_chosen(logits, k).sum(0)
    load = chosen(logits, k).sum(0).to(logits)
    among = softmax_of_chosen(logits, k).mean(0)
    return {
        "E Σ f P": E * (f * probabilities).sum(),  # Switch; times k, Mixtral's
        "E Σ f P, f of first choices": E * (first * probabilities).sum(),  # GShard
        "E Σ f P, P of the gates": E * (f * among).sum(),
        "CV²(importance) + CV²(load)": _variation(importance) + _variation(load),  # Shazeer et al. 2017
    }


def _variation(values: Tensor) -> Tensor:
    return values.var() / values.mean().square()


def z_loss(logits: Tensor) -> Tensor:
    """Return the mean squared log-sum-exp of the logits (Zoph et al. 2022), often added to the balance loss."""
    return logits.logsumexp(-1).square().mean()


# What a mistake makes of the balance loss: the catalogue's id, what is said, the scalar.
BALANCE_MISTAKES: tuple[tuple[str, str, Callable[[Tensor, int], Tensor]], ...] = (
    (
        "experts-balance-over-experts",
        "means over the experts of a token, where those over the tokens are meant",
        lambda logits, k: (chosen(logits, k).to(logits).mean(-1) * logits.softmax(-1).mean(-1)).sum(),
    ),
    (
        "experts-balance-of-one-token",
        "f and P are multiplied token by token, before the means",
        lambda logits, k: (chosen(logits, k).to(logits) * logits.softmax(-1)).sum(-1).mean(),
    ),
    (
        "experts-balance-of-probabilities",
        "f is P: probabilities times probabilities",
        lambda logits, k: logits.softmax(-1).mean(0).square().sum(),
    ),
    (
        "experts-balance-of-counts",
        "f times f: no gradient can come through it",
        lambda logits, k: chosen(logits, k).to(logits).mean(0).square().sum(),
    ),
)
