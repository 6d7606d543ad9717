"""The search loop: find the first difference, replace it in the formula by what matches, and go on to the next."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import Observation
from harness.diagnosis.searches.forward.alignment import Alignment, Weights
from harness.diagnosis.searches.forward.matched import Difference, matched_finding, merged_findings
from harness.diagnosis.searches.forward.unmatched import unmatched_finding
from harness.diagnosis.searches.forward.variant_search import VariantSearch
from harness.oracle.formula import Replacement

MOST_FINDINGS = 12


@dataclass(frozen=True)
class ForwardResult:
    """The outcome of a search.

    `changes` make the formula compute what the subject computes. `complete`: with them the logits agree. `forced`: one
    of them is the subject's own value at a place where no variant matches, which is right for these ids only.
    """

    findings: list[Finding]
    changes: list[Replacement]
    complete: bool
    forced: bool


def search(
    observed: Observation,
    ids: Tensor,
    weights: Weights,
    size: Size,
    own_values: Mapping[str, Tensor],
    blocks: Mapping[int, nn.Module] | None = None,
) -> ForwardResult:
    """Search for the variants with which GPT-2 computes what the subject computes from the same float64 weights.

    `own_values`: the subject's residual stream (`embedding`, `h.0`, ...) where hooks can read it. With it, the search
    continues behind a difference that no variant matches. `blocks`: the subject's blocks by layer, for their lines.
    """
    alignment = Alignment(observed, ids, weights, size)
    changes: list[Replacement] = []
    variants = VariantSearch(alignment, changes)
    differences: list[Difference] = []
    complete = False
    for _ in range(MOST_FINDINGS):
        taps = alignment.taps(changes)
        reached = alignment.anchors_reached(taps)
        if reached == len(alignment.anchors):
            complete = True
            break
        anchor = alignment.anchors[reached]
        expected = taps.get(anchor)
        if isinstance(expected, Tensor) and bool(expected.isnan().all()):
            break  # with these changes GPT-2 itself computes NaN here: there is nothing left to compare
        layer = int(anchor.split(".")[1]) if anchor.startswith("h.") else None
        match = variants.best(taps, reached, layer, differences[-1].variants if differences else ())
        if match is not None:
            changes.insert(0, match.change)
            finding = matched_finding(alignment, match, taps, changes, reached, blocks or {})
            differences.append(Difference(match.variants, match.change.layer, finding))
            continue
        differences.append(Difference((), layer, unmatched_finding(alignment, taps, anchor, layer, own_values)))
        own = _own_value(anchor, layer, own_values)
        if own is None:
            break
        changes.append(own)
    return ForwardResult(
        merged_findings(differences, size.layers - 1),
        changes,
        complete,
        any(not difference.variants for difference in differences),
    )


def _own_value(anchor: str, layer: int | None, own_values: Mapping[str, Tensor]) -> Replacement | None:
    """Return a replacement by the subject's own value, so that the search can compare what comes after it."""
    name = anchor if layer is None else f"h.{layer}"
    value = own_values.get(name)
    if value is None or not bool(torch.isfinite(value).all()) or name == "head":
        return None
    return Replacement(name if layer is None else "block", functools.partial(_constant, value), layer)


def _constant(value: Tensor, *inputs: Any) -> Tensor:
    return value
