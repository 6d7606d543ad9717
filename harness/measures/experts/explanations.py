"""What a layer of experts does instead, if it is wrong: known mistakes computed, and the one that fits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.measures.experts.mixture import EXACT, ROWS, Mixture, mixture
from harness.oracle.expert_gates import CONVENTIONS, MISTAKES, chosen, over_tokens
from harness.subjects.expert_layer import ExpertLayer

FULL_BUFFER = "experts that computed a token leave it out among many, as where a buffer of a fixed size is full"
EMPTY_ENDS_LOOP = "alone it has only the experts before the first one that it did not choose"


def what_outputs_are(found: Mixture, x: Tensor) -> str:
    """Return what the outputs that are no sum of their experts' outputs are instead, as far as it can be seen."""
    wrong = (~found.explained).nonzero().flatten()
    if not len(wrong):
        return ""
    if bool((found.y[wrong] - x[wrong]).norm(dim=-1).max() < EXACT * x.norm(dim=-1).mean()):
        return "the inputs themselves"
    if bool(found.y[wrong].norm(dim=-1).max() < EXACT * x.norm(dim=-1).mean()):
        return "zeros"
    left = found.y[wrong] - x[wrong]
    outputs = found.outputs[wrong]
    rest = (outputs @ torch.linalg.lstsq(outputs, left[..., None]).solution)[..., 0] - left
    if bool(rest.norm(dim=-1).max() < EXACT * x.norm(dim=-1).mean()):
        return "the inputs, added to the sum of the experts' outputs"
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


def mistake_of_gates(layer: ExpertLayer, found: Mixture, k: int) -> str:
    """Return what is said of the mistake that explains all gates; "" if none of those that are known does."""
    if not bool(found.explained.all()):
        return ""
    for name, gates in CONVENTIONS.items():
        if _is_close(found.gates, gates(found.logits, k)):
            return f"the {name}, although a setting says that they are renormalised"
    for id, said, gates in MISTAKES:
        if k + 1 > layer.experts and id == "experts-k-plus-one":
            continue
        if _is_close(found.gates, gates(found.logits, k)):
            return f"{said} ({id})"
    for wrong in over_tokens(found.logits, k, ROWS):
        if _is_close(found.gates, wrong):
            return "the softmax is over the tokens, not over the experts (experts-gate-over-tokens)"
    for name, gates in CONVENTIONS.items():
        expected = gates(found.logits, k)
        if _is_close(found.gates.sort(dim=-1).values, expected.sort(dim=-1).values) and _same_experts(found, k):
            moved = _places_moved(found, expected)
            return f"each expert has the gate of another one of the token's (experts-gate-of-other-slot): {moved}"
        sizes, meant = (gate[gate.abs() > EXACT].sort().values for gate in (found.gates, expected))
        if sizes.shape == meant.shape and bool((sizes - meant).abs().max() < EXACT):
            return f"those of other tokens: all of them are of the {name}, and {_places_moved(found, expected)}"
        ratio = found.gates[expected > EXACT] / expected[expected > EXACT]
        if bool((found.gates - expected * ratio.median()).abs().max() < EXACT) and float(ratio.std()) < EXACT:
            return f"{float(ratio.median()):.4g} times the {name}"
    return ""


def _is_close(gates: Tensor, expected: Tensor) -> bool:
    return bool((gates - expected).abs().max() < EXACT)


def _same_experts(found: Mixture, k: int) -> bool:
    return torch.equal(found.used, chosen(found.logits, k))


def why_neighbours_matter(layer: ExpertLayer, x: Tensor, many: Tensor, changed: Sequence[str]) -> str:
    """Return why outputs of `x` (B, T, C) change with the tokens beside them; "" if it is not seen.

    `many` has the same tokens at its end; `changed` are the places where the outputs are others.
    """
    together = mixture(layer, x)
    alone = torch.cat([mixture(layer, token[None, None]).gates for token in x.reshape(-1, layer.width)])  # (N, E)
    before_an_empty_one = together.used.long().cumprod(-1).bool()
    if _is_close(alone, together.gates.masked_fill(~before_an_empty_one, 0.0)) and not _is_close(alone, together.gates):
        return EMPTY_ENDS_LOOP
    among_many = mixture(layer, many).gates.view(*many.shape[:2], -1)[-x.size(0) :, -x.size(1) :].flatten(0, 1)
    left_out = together.used & ~(among_many.abs() > EXACT)
    if changed == ["beside 2,034 others"] and bool(left_out.any()):
        return FULL_BUFFER
    return ""
