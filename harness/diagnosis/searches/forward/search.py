"""The search loop: find the first difference, replace it in the formula by what matches, and go on to the next."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.core.originals import with_originals
from harness.core.sizes import Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import Observation
from harness.diagnosis.searches.forward.alignment import Alignment, Weights
from harness.diagnosis.searches.forward.matched import Difference, Owners, matched_finding, merged_findings
from harness.diagnosis.searches.forward.unmatched import unmatched_finding
from harness.diagnosis.searches.forward.variant_search import Match, VariantSearch
from harness.oracle.formula import Replacement
from harness.oracle.variants import Variant, variants

MOST_FINDINGS = 12
MOST_WIRINGS = 4
SECONDS = 8.0  # of CPU time, after which no further search begins
MORE_STEPS = 2  # by which another wiring must explain the subject further: one value may match by chance


@dataclass(frozen=True)
class ForwardResult:
    """The outcome of a search.

    `changes` make the formula compute what the subject computes. `complete`: with them the logits agree. `forced`: one
    of them is the subject's own value at a place where no variant matches, which is right for these ids only.
    `bound`: one of them is a variant that is right for these ids only.
    """

    findings: list[Finding]
    changes: list[Replacement]
    complete: bool
    forced: bool
    bound: bool


@dataclass
class _Explanation:
    """Differences, in the order in which they were found, and how far the formula with them follows the subject.

    `ended`: what comes then is NaN in both. `reached`: how many anchors, and how many values of any place, agree before
    the first that no variant gives.
    `wirings`: those of the block that match as well as the first difference does, if that ended the search.
    """

    changes: list[Replacement] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    complete: bool = False
    ended: bool = False
    reached: tuple[int, int] | None = None
    wirings: list[Match] = field(default_factory=list)

    @property
    def is_exact(self) -> bool:
        return (self.complete or self.ended) and all(difference.variants for difference in self.differences)

    @property
    def is_one_cause(self) -> bool:
        """True if one variant is every difference: another wiring with differences of its own is no simpler."""
        return len({difference.variants for difference in self.differences}) == 1

    def is_better_than(self, other: _Explanation) -> bool:
        if self.is_exact != other.is_exact:
            return self.is_exact
        if self.is_exact:
            return len(self.differences) < len(other.differences)
        own, others = self.reached or (0, 0), other.reached or (0, 0)
        # Without an anchor within a block there is no evidence for how the block is wired.
        return own[0] > others[0] or (own[0] == others[0] > 1 and own[1] >= others[1] + MORE_STEPS)


@with_originals  # the subject runs only in `other`, which decides between variants that are alike
def search(
    observed: Observation,
    ids: Tensor,
    weights: Weights,
    size: Size,
    own_values: Mapping[str, Tensor],
    owners: Owners | None = None,
    other: Callable[[], Alignment] | None = None,
    unlisted: Sequence[Variant] = (),
    seconds: float = SECONDS,
) -> ForwardResult:
    """Search for the variants with which GPT-2 computes what the subject computes from the same float64 weights.

    `own_values`: the subject's residual stream (`embedding`, `h.0`, ...) where hooks can read it. With it, the search
    continues behind a difference that no variant matches. `owners`: the subject's modules by layer, for their lines.
    `other`: a pass with other weights, which decides between variants that are the same with these.

    First every difference is looked for by itself; behind embeddings that no variant matches, the search begins with
    the subject's own. If that does not explain the subject to the end, the wirings of the block that reproduce more of
    its values are assumed in turn: norms that are elsewhere hide every other difference. What is still unexplained then
    is searched thoroughly: for variants of some values only, and for two at once. A variant that no table lists counts
    where it alone explains the subject to the end and no listed one does, or where nothing else does. After so many
    `seconds` of CPU time, what takes long is left out.
    """
    deadline = time.process_time() + seconds
    alignment = Alignment(observed, ids, weights, size, deadline=deadline, unlisted=unlisted)
    wiring, best = None, _explained(alignment, {}, owners or {}, until_ambiguous=True)
    around: list[Difference] = []
    own = _own_value("embedding", None, own_values)
    if best.differences and best.differences[-1].is_unmatched_embedding:
        found = _explained(alignment, {}, owners or {}, hard=("systematic",))
        best = found if found.is_exact else best
    if own is not None and best.differences and best.differences[-1].is_unmatched_embedding:
        around, alignment = best.differences, Alignment(observed, ids, weights, size, [own], deadline, unlisted)
        best = _explained(alignment, {}, owners or {}, until_ambiguous=True)
    if best.wirings:
        wiring, best = _best_wiring(alignment, best.wirings, best, owners or {})
        if not best.is_exact:
            best = _explained(alignment, {}, owners or {})
    if not best.is_exact:
        found = _explained(alignment, {}, owners or {}, wiring, hard=("systematic",))
        if found.is_exact and found.is_one_cause:
            best = found
    if not best.is_exact:
        wiring, best = _best_wiring(alignment, _wirings(alignment, best.changes), best, owners or {})
    if not best.is_exact and found.is_exact:
        best = found
    if not best.is_exact:
        best = _found_with_pairs(alignment, wiring, owners or {}) or _explained(
            alignment, own_values, owners or {}, wiring, hard=("pairs", "parts")
        )
    if best.is_exact and other is not None and any(map(_is_ambiguous, best.differences)):
        best.differences = _decided(best, other())
    return ForwardResult(
        merged_findings([*around, *best.differences], size.layers - 1),
        [*best.changes, *alignment.given],
        best.complete,
        any(not difference.variants for difference in (*around, *best.differences)),
        any(variant.bound for difference in (*around, *best.differences) for variant in difference.variants),
    )


def _found_with_pairs(alignment: Alignment, wiring: Match | None, owners: Owners) -> _Explanation | None:
    """Return an exact explanation with two differences at once, under a wiring or the likeliest; None if none is."""
    for start in (wiring, *(_wirings(alignment, [])[:1] if wiring is None else ())):
        found = _explained(alignment, {}, owners, start, hard=("pairs",))
        if found.is_exact:
            return found
    return None


def _best_wiring(
    alignment: Alignment, wirings: list[Match], best: _Explanation, owners: Owners
) -> tuple[Match | None, _Explanation]:
    """Return the wiring that explains the subject better than `best`, None if none does, and the explanation."""
    found = None
    for wiring in wirings:
        if alignment.is_late:
            break
        other = _explained(alignment, {}, owners, wiring)
        if other.is_better_than(best):
            found, best = wiring, other
        if best.is_exact:
            break
    return found, best


def _wirings(alignment: Alignment, found: list[Replacement]) -> list[Match]:
    """Return the wirings of the block with which GPT-2 computes as many of the subject's values, the most first.

    Few values need be in common: with heads in modules of their own and another scale, only the last norm's is.

    Each is tried alone, with the changes around the blocks that were found without it, and with all of these.
    """
    right = alignment.values_matched([])
    around = [change for change in found if change.layer is None]
    matched: list[tuple[int, Match]] = []
    for variant in variants():
        if variant.operation == "block":
            wiring = _in_every_layer(variant)
            values = max(alignment.values_matched([wiring.change, *changes]) for changes in ([], around, found))
            matched.append((values, wiring))
    matched.sort(key=lambda pair: -pair[0])
    return [wiring for values, wiring in matched if values >= right][:MOST_WIRINGS]


def _in_every_layer(variant: Variant) -> Match:
    return Match((variant,), Replacement(variant.operation, variant.function))


def _explained(
    alignment: Alignment,
    own_values: Mapping[str, Tensor],
    owners: Owners,
    wiring: Match | None = None,
    *,
    hard: tuple[str, ...] = (),
    until_ambiguous: bool = False,
) -> _Explanation:
    """Return the differences from GPT-2, or from GPT-2 with another wiring of the block.

    `hard`: what is searched for the first difference that no single variant is: see `VariantSearch.best_of_hard`.
    With `until_ambiguous` the search ends at a first difference in a block that may as well be its wiring.
    """
    found = _Explanation(changes=[] if wiring is None else [wiring.change])
    tried = VariantSearch(alignment, found.changes)
    for _ in range(MOST_FINDINGS * alignment.size.layers):
        if len({difference.variants for difference in found.differences}) > MOST_FINDINGS:
            break
        taps = alignment.taps(found.changes)
        reached = alignment.anchors_reached(taps)
        if reached == len(alignment.anchors):
            found.complete = True
            break
        anchor = alignment.anchors[reached]
        expected = taps.get(anchor)
        if isinstance(expected, Tensor) and bool(expected.isnan().all()):
            # With these changes GPT-2 itself computes NaN here: there is nothing left to compare.
            found.ended = bool(alignment.observed.logits.isnan().any())
            break
        layer = int(anchor.split(".")[1]) if anchor.startswith("h.") else None
        matched = list(dict.fromkeys(v for difference in found.differences for v in difference.variants))
        state = (tuple(found.changes), tuple(matched))
        match = alignment.once(("best", *state), functools.partial(tried.best, taps, reached, layer, matched))
        if match is None and found.reached is None:
            match = tried.best_of_hard(hard, taps, reached, layer, matched)
        if (
            match is not None
            and until_ambiguous
            and all(difference.layer is None for difference in found.differences)
            and len({v.fault for v in match.variants}) > 1
        ):
            found.wirings = [_in_every_layer(v) for v in match.variants if v.operation == "block"]
            if found.wirings:
                return found
        if match is not None:
            found.changes.insert(0, match.change)
            finding = matched_finding(alignment, match, taps, found.changes, reached, owners)
            found.differences.append(Difference(match.variants, match.change.layer, finding, match.change))
            continue
        if found.reached is None:
            found.reached = alignment.anchors_confirmed(taps), alignment.values_matched(found.changes)
        finding = alignment.once(
            ("unmatched", *state, bool(own_values)),
            functools.partial(
                unmatched_finding, alignment, taps, reached, layer, own_values, changed=bool(found.changes)
            ),
        )
        found.differences.append(Difference((), layer, finding))
        own = _own_value(anchor, layer, own_values)
        if own is None:
            break
        found.changes.append(own)
    if wiring is not None:
        _add_wiring(alignment, found, wiring, owners)
    return found


def _add_wiring(alignment: Alignment, found: _Explanation, wiring: Match, owners: Owners) -> None:
    """Put the difference that was assumed before the others."""
    without = alignment.taps([change for change in found.changes if change is not wiring.change])
    finding = matched_finding(alignment, wiring, without, found.changes, 1, owners)
    layers = range(alignment.size.layers)
    found.differences[:0] = [Difference(wiring.variants, layer, finding, wiring.change) for layer in layers]


def _is_ambiguous(difference: Difference) -> bool:
    return len({(variant.fault, variant.says) for variant in difference.variants}) > 1


def _decided(best: _Explanation, other: Alignment) -> list[Difference]:
    """Return the differences without the variants that the other pass rules out: ReLU6 is ReLU up to 6."""

    def explains(variant: Variant, variants: tuple[Variant, ...]) -> bool:
        replaced = {id(each.change) for each in best.differences if each.variants == variants}
        changes = [
            Replacement(variant.operation, variant.function, change.layer) if id(change) in replaced else change
            for change in best.changes
        ]
        logits = other.taps(changes).get("head")
        return logits is not None and other.logits_agree(logits)

    found = []
    for each in best.differences:
        left = tuple(v for v in each.variants if explains(v, each.variants)) if _is_ambiguous(each) else ()
        found.append(dataclasses.replace(each, variants=left or each.variants))
    return found


def _own_value(anchor: str, layer: int | None, own_values: Mapping[str, Tensor]) -> Replacement | None:
    """Return a replacement by the subject's own value, so that the search can compare what comes after it."""
    name = anchor if layer is None else f"h.{layer}"
    value = own_values.get(name)
    if value is None or not bool(torch.isfinite(value).all()) or name == "head":
        return None
    return Replacement(name if layer is None else "block", functools.partial(_constant, value), layer)


def _constant(value: Tensor, *inputs: Any) -> Tensor:
    return value
