"""Measures of routing: who computes a token, with which gates, and whether that depends on anything else."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.measures.experts.explanations import mistake_of_gates, what_outputs_are, why_neighbours_matter
from harness.measures.experts.mixture import EXACT, NO_CONVENTION, convention_of, layer_of, mixture, tokens
from harness.measures.experts.mixture import with_epsilon as epsilon_of
from harness.oracle.expert_gates import CONVENTIONS, SOFTMAX_OF_CHOSEN, chosen
from harness.subjects.protocols import MixesExperts
from harness.suites.measure_registry import Reading, measure

MANY_ROWS, MANY = 8, 256  # 2048 tokens: more than any buffer that was meant for a test


@measure
def expert_answers_changing(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return how far a second answer in eval mode is from the first, relative: at once, and after a training pass."""
    layer = layer_of(subject, size, experts=experts, per_token=per_token, own=True)
    x = tokens(layer)
    with torch.no_grad():
        first = layer(x)
        again = layer(x)
        layer.module.train()
        layer(x)
        layer.module.eval()
        after = layer(x)
    found = {"called twice": _distance(again, first), "after a pass in training mode": _distance(after, first)}
    hint = "random numbers take part in the choice of the experts, in eval mode too" if max(found.values()) else ""
    return Reading(found, "", {"hint": hint, "line": layer.line} if hint else {})


@measure
def tokens_without_their_experts(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Count the tokens that are not computed by exactly k of their experts, and the experts that nothing reaches.

    The gates are read off the outputs. Without a capacity no token is dropped.
    """
    layer = layer_of(subject, size, experts=experts, per_token=per_token)
    x = tokens(layer)
    found = mixture(layer, x)
    k = layer.per_token or per_token
    counts = found.used.sum(-1)
    wanted = chosen(found.logits, k)
    own = found.explained[:, None]  # what computes the other tokens is not known
    idle = (wanted & own).any(0) & ~(found.used & own).any(0)
    others = {int(count): int(number) for count, number in zip(*counts.unique(return_counts=True), strict=True)}
    strangers = found.explained & (counts == k) & (found.used & ~wanted).any(-1)
    value = {
        "outputs that are no sum of their experts'": int((~found.explained).sum()),
        "tokens with another number of experts": int((found.explained & (counts != k)).sum()),
        "tokens that other experts compute than the router's best": int(strangers.sum()),
        "experts that are chosen and never computed": int(idle.sum()),
    }
    answers = {
        "outputs that are no sum of their experts'": what_outputs_are(found, x.reshape(-1, layer.width)),
        "tokens with another number of experts": ", ".join(f"{n} tokens have {c}" for c, n in others.items()),
        "tokens that other experts compute than the router's best": mistake_of_gates(layer, found, k)
        or f"of {len(counts)} tokens",
        "experts that are chosen and never computed": _numbers(idle),
    }
    wrong = {place: text for place, text in answers.items() if value[place]}
    hint = "; ".join(f"{place}: {text}" for place, text in wrong.items() if text)
    details = {"answers": wrong, "k": k, "experts": layer.experts, "read": layer.description}
    return Reading(value, "", {**details, **({"hint": hint, "line": layer.line} if wrong else {})})


@measure
def gate_convention(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return the name of the definition that the gates of all tokens follow; else "none", and what they are instead."""
    layer = layer_of(subject, size, experts=experts, per_token=per_token)
    found = mixture(layer, tokens(layer))
    k = layer.per_token or per_token
    name, fits = convention_of(layer, found, k)
    if bool(fits.all()):
        return Reading(name, "", {"read": layer.description})
    if (epsilon := epsilon_of(found, k)) is not None:
        return Reading(SOFTMAX_OF_CHOSEN, "", {"epsilon": epsilon, "read": layer.description})
    wrong = int((~fits).sum())
    closest = f"the closest is the {name}, from which {wrong} of {len(fits)} tokens differ"
    instead = mistake_of_gates(layer, found, k) or closest
    hint = f"the gates are those of no definition: {instead}"
    return Reading(f"{NO_CONVENTION}: {instead}", "", {"hint": hint, "line": layer.line, "read": layer.description})


@measure
def dense_differences(subject: MixesExperts, *, size: str, case: str, per_token: int = 2) -> Reading:
    """Return how far the layer is from a dense one, relative: with `case` "equal experts", or with "one expert".

    The dense output is that of the one network, times the sum of the gates: 1, unless the convention of the layer is
    one that does not renormalise.
    """
    if case == "one expert":
        layer, k = layer_of(subject, size, experts=1, per_token=1, own=True), 1
    else:
        layer, k = layer_of(subject, size, experts=6, per_token=per_token, own=True), per_token
        k = layer.per_token or k
    x = tokens(layer)
    found = mixture(layer, x)
    name, _ = convention_of(layer, found, k)
    total = CONVENTIONS[name](found.logits, k).sum(-1, keepdim=True)  # (N, 1)
    if (epsilon := epsilon_of(found, k)) is not None:
        probabilities = CONVENTIONS["softmax over all, not renormalised"](found.logits, k).sum(-1, keepdim=True)
        total = probabilities / (probabilities + epsilon)
    with torch.no_grad():
        for parts in layer.expert_parameters[1:]:
            for part, first in zip(parts, layer.expert_parameters[0], strict=True):
                part.of(part.parameter).copy_(first.of(first.parameter))
        dense = total * layer.expert_output(0, x) + layer.shared_output(x)
        y = layer(x).reshape(-1, layer.width)
    distance = (y - dense).norm(dim=-1) / dense.norm(dim=-1).mean()
    worst = float(distance.max())
    hint = f"{int((distance > EXACT).sum())} of {len(y)} tokens differ from the dense network"
    return Reading(worst, "", {"convention": name, **({"hint": hint, "line": layer.line} if worst > EXACT else {})})


@measure
def neighbours_mattering(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return how far a token's output changes with the tokens beside it, relative, where no capacity binds."""
    layer = layer_of(subject, size, experts=experts, per_token=per_token)
    x = tokens(layer, rows=2, length=7)
    many = tokens(layer, rows=MANY_ROWS, length=MANY, seed=1)
    many[-2:, -7:] = x  # at the end, where a buffer is full
    with torch.no_grad():
        together = layer(x)
        alone = torch.stack([torch.stack([layer(token[None, None])[0, 0] for token in row]) for row in x])
        found = {
            "alone": _distance(alone, together),
            "beside 2,034 others": _distance(layer(many)[-2:, -7:], together),
            "in another order": _distance(layer(x.flip(0, 1)).flip(0, 1), together),
        }
    changed = [place for place, distance in found.items() if not distance <= EXACT]
    if not changed:
        return Reading(found, "")
    why = why_neighbours_matter(layer, x, many, changed)
    worst = max(found, key=lambda place: found[place])
    hint = f"a token's output changes with its batch, most {worst}{': ' if why else ''}{why}"
    return Reading(found, "", {"hint": hint, "line": layer.line, "answers": dict.fromkeys(changed, why)})


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _numbers(which: Tensor) -> str:
    return ", ".join(f"expert {number}" for number in which.nonzero().flatten().tolist())
