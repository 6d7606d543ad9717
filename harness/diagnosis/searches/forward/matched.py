"""Findings for the differences that a variant matches: place, cause, evidence and line."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from torch import Tensor

from harness.core.source_lines import SourceLine
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import SAME
from harness.diagnosis.searches.forward.alignment import Alignment, Taps, largest_difference
from harness.diagnosis.searches.forward.variant_search import Match
from harness.oracle.formula import Replacement, place
from harness.oracle.variants import Variant

# The line to look at is the one that makes the layer (`nn.GELU()`, `eps=1e-6`), not the one that calls it.
SETTINGS = ("ln-eps", "rms-norm", "qkv-bias", "mlp-bias")
# The line to look at is in the module that connects the parts, not in the part that the value comes from.
WIRING = ("ln-missing", "ln-shared", "ln-swapped", "final-ln-missing")
# By layer, and by None for what is outside the blocks: the ids of the subject's modules that connect the parts.
Owners = Mapping[int | None, frozenset[int]]
LINES_BACK = 6  # places before the wrong one that are looked at for the last right step


@dataclasses.dataclass(frozen=True)
class Difference:
    """One difference from GPT-2: the variants that match it, the likeliest first, its layer, and its finding."""

    variants: tuple[Variant, ...]  # none if no variant matches
    layer: int | None
    finding: Finding
    change: Replacement | None = None  # the first variant in the formula

    @property
    def is_unmatched_embedding(self) -> bool:
        """True if the blocks read embeddings that no variant gives."""
        return not self.variants and self.layer is None and self.finding.where.startswith("embedding")


def matched_finding(
    alignment: Alignment,
    match: Match,
    right: Taps,
    changes: Sequence[Replacement],
    reached: int,
    owners: Owners,
) -> Finding:
    """Return the finding for a match. `right`: the values without it; `changes`: all changes, with it."""
    variant, layer = match.variants[0], match.change.layer
    wrong = alignment.taps(changes)
    is_wiring = variant.operation.startswith(("residual", "block")) or variant.fault.startswith(WIRING)
    is_setting = variant.operation == "mlp.activation" or variant.fault.startswith(SETTINGS)
    first = 0 if layer is None and variant.operation == "block" else layer
    owner = owners.get(first) if is_wiring else None
    line = _source_line(alignment, wrong, place(variant.operation, first), owner, made=is_setting)
    if variant.component == "attn.mask":  # a mask that is made wrongly shows where it is used
        line = alignment.observed.wrong_mask or line
    return Finding(
        where=place(variant.component, first),
        fault=variant.fault,
        cause=variant.says,
        evidence=_evidence(alignment, right, wrong, reached),
        source="" if line is None else str(line),
        text="" if line is None else line.text,
    )


def _evidence(alignment: Alignment, right: Taps, wrong: Taps, reached: int) -> str:
    """Compare the subject's value at the next anchor with GPT-2's and with the variant's."""
    for anchor in alignment.anchors[reached:]:
        expected, by_variant = right.get(anchor), wrong.get(anchor)
        if expected is None or by_variant is None:
            continue
        own = _own_value(alignment, wrong, anchor)
        if own is None or (anchor == "head" and not alignment.logits_agree(by_variant)):
            continue
        if not bool(own.isfinite().all()) or largest_difference(own, expected) <= SAME * float(expected.abs().max()):
            continue  # nothing is shown by NaN, nor where the variant changes nothing
        left = min(
            largest_difference(own, by_variant.permute(order))
            for order in itertools.permutations(range(by_variant.ndim))
        )
        return (
            f"{in_words(anchor)} differs from GPT-2's by {largest_difference(own, expected):.1e}; "
            f"from GPT-2's with this variant by {left:.0e}"
        )
    return "with this variant GPT-2 matches more of the subject's values; something else is wrong after it"


def _own_value(alignment: Alignment, taps: Taps, anchor: str) -> Tensor | None:
    if anchor == "head":
        return alignment.observed.logits
    step = alignment.step_of(taps, anchor)
    return None if step is None else alignment.observed.steps[step].tensor


def _source_line(
    alignment: Alignment, taps: Taps, name: str, owner: frozenset[int] | None, *, made: bool
) -> SourceLine | None:
    """Return the line that computed the wrong value; if none did (a step left out), the line that came next.

    `owner`: the modules in which to look, for mistakes in how they connect their parts.
    """
    observed, order = alignment.observed, list(taps)
    if name not in taps:  # it is part of a block whose value is the subject's own
        return None
    position = order.index(name)
    found = alignment.step_of(taps, name)
    found = alignment.step_of_first_head(taps[name]) if found is None else found
    # A block's value is that of its last sum: the sum itself is no earlier place.
    is_block = name.count(".") == 1
    earlier = [
        other for other in order[max(0, position - LINES_BACK) : position]
        if not (is_block and taps[other] is taps[name]) and not other.startswith(f"{name}.")
    ]  # fmt: skip
    last = max((step for other in earlier if (step := alignment.step_of(taps, other)) is not None), default=-1)
    if found is not None and found > last and owner is None:
        return observed.line(found, made=made)
    for other in order[position + (owner is None) :]:
        step = alignment.step_of(taps, other)
        if step is not None and step > last:
            return observed.steps[step].line_in(owner)
    return None if found is None else observed.steps[found].line_in(owner)


def in_words(anchor: str) -> str:
    """Return a noun phrase for an anchor: `h.1.residual.attn` -> "the residual stream after block 1's attention"."""
    if anchor == "head":
        return "the logits' value"
    words = anchor.split(".")
    if anchor.startswith("h."):
        return f"the residual stream after block {words[1]}" + ("'s attention" if len(words) > 2 else "")
    return {"embedding": "the embeddings' sum", "ln_f": "the final norm's output"}[anchor]


def merged_findings(differences: Sequence[Difference], last: int) -> list[Finding]:
    """Return one finding a cause: a variant that matches in several layers is reported once. `last`: the last layer."""
    groups: list[tuple[tuple[Variant, ...], list[Difference]]] = []
    for difference in differences:
        for number, (variants, members) in enumerate(groups):
            common = tuple(variant for variant in variants if variant in difference.variants)
            if common or (not variants and not difference.variants and _is_alike(members[0], difference)):
                groups[number] = common, [*members, difference]
                break
        else:
            groups.append((difference.variants, [difference]))
    return [_merged(variants, members, last) for variants, members in groups if not any(v.harmless for v in variants)]


def _is_alike(a: Difference, b: Difference) -> bool:
    """Return True if no variant matches at the same place of two layers, for what is known in the same way."""
    words = [each.finding.where.split(".")[2:] for each in (a, b)]
    return None not in (a.layer, b.layer) and words[0] == words[1] and a.finding.cause == b.finding.cause


def _merged(variants: tuple[Variant, ...], members: Sequence[Difference], last: int) -> Finding:
    first = members[0].finding
    layers = list(dict.fromkeys(member.layer for member in members if member.layer is not None))
    if not variants:
        others = f"; the same in layer{'s' * (len(layers) > 2)} {', '.join(map(str, layers[1:]))}"
        return dataclasses.replace(first, evidence=first.evidence + others * (len(layers) > 1))
    variant = variants[0]
    where, fault, cause = place(variant.component, members[0].layer), variant.fault, variant.says
    if fault == "mask-missing" and layers == [last]:
        fault = "mask-missing-last-layer"
    if layers == list(range(last + 1)):
        where = place(variant.component, layers[0]).replace(f"h.{layers[0]}", "h.*", 1)
    elif len(layers) > 1:
        cause = f"in layers {', '.join(map(str, layers))}: {cause}"
    alike = dict.fromkeys(other.fault for other in variants if other.fault != fault)
    same = [
        other.says for other in variants[1:] if other.says != variant.says and other.fault != (variant.fault or None)
    ]
    if same:
        cause += f" (on these values the same: {same[0]})"
    return dataclasses.replace(first, where=where, fault=fault, cause=cause, alike=tuple(alike))
