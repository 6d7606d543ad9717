"""Measures of routing: who computes a token, with which gates, and whether that depends on anything else."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.measures.experts.mixture import EXACT, NO_CONVENTION, Mixture, convention_of, layer_of, mixture, tokens
from harness.measures.experts.mixture import with_epsilon as epsilon_of
from harness.oracle.expert_gates import CONVENTIONS, MISTAKES, SOFTMAX_OF_CHOSEN, chosen
from harness.subjects.expert_layer import ExpertLayer
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
    reached = (found.used & found.explained[:, None]).any(0)
    others = {int(count): int(number) for count, number in zip(*counts.unique(return_counts=True), strict=True)}
    strangers = found.explained & (counts == k) & (found.used & ~wanted).any(-1)
    value = {
        "outputs that are no sum of their experts'": int((~found.explained).sum()),
        "tokens with another number of experts": int((found.explained & (counts != k)).sum()),
        "tokens that other experts compute than the router's best": int(strangers.sum()),
        "experts that are chosen and never computed": int((wanted.any(0) & ~reached).sum()),
    }
    answers = {
        "outputs that are no sum of their experts'": _what_they_are(found, x.reshape(-1, layer.width)),
        "tokens with another number of experts": ", ".join(f"{n} tokens have {c}" for c, n in others.items()),
        "tokens that other experts compute than the router's best": f"of {len(counts)} tokens",
        "experts that are chosen and never computed": _numbers(wanted.any(0) & ~reached),
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
    instead = _mistake(layer, found, k) or f"the closest is the {name}, from which {wrong} of {len(fits)} tokens differ"
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
    worst = max(found, key=lambda place: found[place])
    hint = f"a token's output changes with its batch, most {worst}" if found[worst] > EXACT else ""
    return Reading(found, "", {"hint": hint, "line": layer.line} if hint else {})


def _distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max() / expected.abs().max())


def _numbers(which: Tensor) -> str:
    return ", ".join(f"expert {number}" for number in which.nonzero().flatten().tolist())


def _what_they_are(found: Mixture, x: Tensor) -> str:
    """Return what the outputs that are no sum of their experts' outputs are instead, as far as it can be seen."""
    wrong = (~found.explained).nonzero().flatten()
    if not len(wrong):
        return ""
    if bool((found.y[wrong] - x[wrong]).norm(dim=-1).max() < EXACT * x.norm(dim=-1).mean()):
        return "the inputs themselves"
    if bool(found.y[wrong].norm(dim=-1).max() < EXACT * x.norm(dim=-1).mean()):
        return "zeros"
    shown = wrong[:8]
    sources = []
    for token in shown.tolist():
        wanted = found.y[token].expand(len(found.y), -1)[..., None]  # (N, C, 1)
        left = (found.outputs @ torch.linalg.lstsq(found.outputs, wanted).solution - wanted).norm(dim=(1, 2))
        if float(left.min()) < EXACT * float(wanted[0].norm()):
            sources.append(f"{token} has the sum of {int(left.argmin())}")
    if sources:
        return f"sums of other tokens' experts: {', '.join(sources)}"
    return f"no sum for any token, as where experts of several tokens are mixed: tokens {wrong[:8].tolist()}"


def _places_moved(found: Mixture, expected: Tensor) -> str:
    moved = (found.gates - expected).abs().amax(-1) > EXACT
    return f"{int(moved.sum())} of {len(moved)} tokens have others"


def _mistake(layer: ExpertLayer, found: Mixture, k: int) -> str:
    """Return what is said of the mistake that explains all gates; "" if none of those that are known does."""
    if not bool(found.explained.all()):
        return ""
    for name, gates in CONVENTIONS.items():
        if bool(((found.gates - gates(found.logits, k)).abs().amax(-1) < EXACT).all()):
            return f"the {name}, although a setting says that they are renormalised"
    for id, said, gates in MISTAKES:
        if k + 1 > layer.experts and id == "experts-k-plus-one":
            continue
        if bool(((found.gates - gates(found.logits, k)).abs().amax(-1) < EXACT).all()):
            return f"{said} ({id})"
    for name, gates in CONVENTIONS.items():
        expected = gates(found.logits, k)
        sizes, meant = (gate[gate.abs() > EXACT].sort().values for gate in (found.gates, expected))
        if sizes.shape == meant.shape and bool((sizes - meant).abs().max() < EXACT):
            return f"those of other tokens: all of them are of the {name}, and {_places_moved(found, expected)}"
        ratio = found.gates[expected > EXACT] / expected[expected > EXACT]
        if bool((found.gates - expected * ratio.median()).abs().max() < EXACT) and float(ratio.std()) < EXACT:
            return f"{float(ratio.median()):.4g} times the {name}"
    return ""
