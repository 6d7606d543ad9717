"""Measures of a capacity: which tokens are dropped, whether an expert was full then, and what is left of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor

from harness.measures.experts.mixture import EXACT, Mixture, convention_of, layer_of, mixture, tokens
from harness.oracle.expert_gates import CONVENTIONS, chosen
from harness.subjects.protocols import MixesExperts
from harness.suites.measure_registry import Reading, measure

ROUNDINGS = {"rounded up": math.ceil, "rounded down": math.floor}


@measure
def capacity_faults(
    subject: MixesExperts, *, size: str, factor: float, rows: int = 3, experts: int = 6, per_token: int = 2
) -> Reading:
    """Count what a capacity does that is not by definition.

    A token keeps some of its chosen experts, with the gates of the convention, and the others add nothing. An expert
    has at most its capacity, factor · k · N / E tokens (or factor · N / E), of the batch or of each sequence, and
    drops one only if it is full. Raises MissingAbility without a setting for a capacity factor.
    """
    free = layer_of(subject, size, experts=experts, per_token=per_token)
    k = free.per_token or per_token
    x = tokens(free, rows=rows)
    convention, _ = convention_of(free, mixture(free, x), k)
    layer = layer_of(subject, size, experts=experts, per_token=per_token, capacity_factor=factor, own=True)
    found = mixture(layer, x)
    wanted = chosen(found.logits, k)  # (N, E)
    gates = CONVENTIONS[convention](found.logits, k)
    kept = found.used & wanted
    alike = torch.zeros(len(wanted), dtype=torch.bool)
    for expected in _gates_of(gates, kept):
        alike |= (found.gates - expected).abs().amax(-1) < EXACT
    right = found.explained & alike
    dropped = wanted & ~kept
    capacity, fits = _capacity(kept, dropped, rows=rows, factor=factor, k=k)
    value = {
        "outputs that are not the gated sum of some of their experts": int((~right).sum()),
        "experts with more than any definition of the capacity allows": _beyond(kept, rows=rows, factor=factor, k=k),
        "capacities that are those of no definition": 0 if fits else 1,
    }
    answers = {
        "outputs that are not the gated sum of some of their experts": _instead(found, x, wanted, kept, ~right),
        "capacities that are those of no definition": f"{capacity}; {_definitions(x, factor, k, layer.experts)}",
    }
    answers = {place: text for place, text in answers.items() if value[place]}
    hint = "; ".join(f"{place}: {text}" for place, text in answers.items())
    details = {"capacity": capacity, "dropped": int(dropped.sum()), "choices": int(wanted.sum()), "answers": answers}
    return Reading(value, "", {**details, **({"hint": hint, "line": layer.line} if any(value.values()) else {})})


def _gates_of(gates: Tensor, kept: Tensor) -> Iterator[Tensor]:
    """Yield the gates of the experts that are left: as they were, or divided by their sum."""
    left = gates.masked_fill(~kept, 0.0)
    yield left
    yield left / left.sum(-1, keepdim=True).clamp_min(1e-30) * gates.sum(-1, keepdim=True)


def _allowed(tokens_: int, rows: int, factor: float, k: int, experts: int) -> dict[str, tuple[int, int]]:
    """Return each definition with its capacity, and the number of groups of tokens that it is counted in."""
    found = {}
    for choices, groups in itertools.product((k, 1), (1, rows)):
        for how, rounded in ROUNDINGS.items():
            said = f"{'k ' if choices > 1 else ''}N / E of {'a sequence' if groups > 1 else 'the batch'}, {how}"
            found[said] = (int(rounded(factor * choices * (tokens_ // groups) / experts)), groups)
    return found


def _loads(kept: Tensor, groups: int) -> Tensor:
    return kept.view(groups, -1, kept.size(-1)).sum(1)  # (groups, E)


def _capacity(kept: Tensor, dropped: Tensor, *, rows: int, factor: float, k: int) -> tuple[str, bool]:
    """Return the loads of the experts that dropped a token, and True if a definition explains them all."""
    allowed = _allowed(len(kept), rows, factor, k, kept.size(-1))
    for said, (capacity, groups) in allowed.items():
        loads, lost = _loads(kept, groups), _loads(dropped, groups)
        full = loads[lost > 0]
        if bool((loads <= capacity).all()) and bool((full == capacity).all()):
            return said, True
    lost = _loads(dropped, 1)[0]
    loads = _loads(kept, 1)[0]
    seen = sorted(set(loads[lost > 0].tolist()))
    if not seen:
        return f"nothing was dropped, and an expert has up to {int(loads.max())}", False
    return f"experts that drop tokens have {', '.join(map(str, seen))}", False


def _beyond(kept: Tensor, *, rows: int, factor: float, k: int) -> int:
    allowed = _allowed(len(kept), rows, factor, k, kept.size(-1))
    most = max(capacity * groups for capacity, groups in allowed.values())
    return int((_loads(kept, 1)[0] > most).sum())


def _definitions(x: Tensor, factor: float, k: int, experts: int) -> str:
    number = factor * k * x.shape[0] * x.shape[1] / experts
    return f"expected {factor:g} · {k} · {x.shape[0] * x.shape[1]} / {experts} = {number:g}"


def _instead(found: Mixture, x: Tensor, wanted: Tensor, kept: Tensor, wrong: Tensor) -> str:
    """Return what the outputs of these tokens are, as far as it can be seen."""
    if not bool(wrong.any()):
        return ""
    own = x.reshape(-1, x.size(-1))
    through = (found.y - own)[wrong].norm(dim=-1) < EXACT * own.norm(dim=-1).mean()
    if bool(through.any()):
        return f"{int(through.sum())} dropped tokens are replaced by their inputs"
    others = (found.used & ~wanted)[wrong].any(-1)
    if bool(others.any()):
        return f"{int(others.sum())} tokens are computed by experts that they did not choose"
    return f"{int(wrong.sum())} tokens have other gates, as where a dropped one's is given to the rest"
