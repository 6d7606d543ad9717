"""The search among the listed variants for those that reproduce more of the subject's values."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from harness.diagnosis.observation import varies
from harness.diagnosis.searches.forward.alignment import Alignment, Taps, is_in_block
from harness.diagnosis.searches.forward.data_variants import PartsSeen, own_masks, token_masks
from harness.diagnosis.searches.forward.fitted_variants import fitted_variants, places_between
from harness.oracle.declared import is_declared_absent
from harness.oracle.formula import Formula, Replacement, place
from harness.oracle.variants import Variant, in_parts, systematic_variants, variants

Candidate = tuple[Variant, int | None]  # a variant and the layer in which to try it; None: in every layer


@dataclass(frozen=True)
class Match:
    """The variants that match the subject equally well, the likeliest first, and the first one as a replacement."""

    variants: tuple[Variant, ...]
    change: Replacement


class VariantSearch:
    """Tries variants in the formula, on top of the `changes` found so far (a list that its owner extends)."""

    def __init__(self, alignment: Alignment, changes: list[Replacement]) -> None:
        self.alignment, self.changes = alignment, changes
        self.anchors = alignment.anchors

    def best(self, taps: Taps, reached: int, layer: int | None, matched: Sequence[Variant]) -> Match | None:
        """Return the variants that take the subject furthest; failing that, those that match most of its steps.

        `matched`: the variants that matched before. They are tried first, because what is wrong in one layer is often
        wrong in all. Variants with a constant that is fitted to the subject's values come after the listed ones.
        """
        if reached == 1 and not varies(taps["embedding.position"]) and not is_declared_absent("wpe.weight"):
            # Without positions the embeddings' sum is the token embeddings, which every model computes.
            of_embedding = [v for v in variants() if v.operation.startswith("embedding")]
            candidates = self._candidates(of_embedding, taps, None, 0)
            match = self._furthest([c for c in candidates if self._changes_embedding(c[0], taps)], taps, 0, None, -1)
            # The first block computes the norm of what it reads: that alone does not show that it reads a norm.
            if match is not None and self._matches_more(match.change):
                return match
        passed = self.alignment.last_right_step(taps, reached)
        here = self._candidates(variants(), taps, layer, reached)
        likely = self._candidates((*self.alignment.unlisted, *matched), taps, layer, reached)
        for candidates in (likely, here):
            if (match := self._furthest(candidates, taps, reached, layer, passed)) is not None:
                return match
        fitted = self._candidates(fitted_variants(self.alignment, taps, layer, reached), taps, layer, reached)
        # A value may be right and be changed before it is read.
        for candidates in (fitted, self._in_the_layer_before(layer, reached)):
            if (match := self._furthest(candidates, taps, reached, layer, passed)) is not None:
                return match
        before = self._candidates(matched, taps, layer, reached)
        return self._most_steps(taps, layer, passed, [*before, *here, *fitted])

    def _changes_embedding(self, variant: Variant, taps: Taps) -> bool:
        found = self._taps_with(taps, [Replacement(variant.operation, variant.function)], None).get("embedding")
        return found is not None and not torch.equal(found, taps["embedding"])

    def _matches_more(self, change: Replacement) -> bool:
        known = self.alignment.values_matched(self.changes)
        return self.alignment.values_matched([change, *self.changes]) > known

    def best_of_hard(
        self, kinds: Sequence[str], taps: Taps, reached: int, layer: int | None, matched: Sequence[Variant]
    ) -> Match | None:
        """Return a match of one of these kinds, which take seconds.

        "pairs": the first of two variants that match together. "parts": a variant of some of the values only.
        "systematic": a variant that no table lists, of those that are the simplest: it has no id.
        `matched`: the variants that matched before. Of pairs that match alike, the one with most of them is returned.
        """
        passed = self.alignment.last_right_step(taps, reached)
        if "systematic" in kinds and (match := self._unlisted(taps, reached, layer, passed)) is not None:
            return match
        here = self._candidates(variants(), taps, layer, reached) if set(kinds) & {"pairs", "parts"} else []
        if "pairs" in kinds and (match := self._first_of_two(here, taps, reached, layer, passed, matched)) is not None:
            return match
        return self._furthest(self._in_parts(here), taps, reached, layer, passed) if "parts" in kinds else None

    def _unlisted(self, taps: Taps, reached: int, layer: int | None, passed: int) -> Match | None:
        """Return a systematic variant that matches, a mask that the subject has, or a variant of what differs alone."""
        kinds: list[Iterable[Variant]] = [systematic_variants()]
        if layer is not None:
            kinds += [own_masks(self.alignment, taps, layer), token_masks(self.alignment.ids)]
        for tried in kinds:
            candidates = self._in_time(self._candidates(tried, taps, layer, reached))
            if (match := self._furthest(candidates, taps, reached, layer, passed)) is not None:
                return match
        whole = self._candidates((*variants(), *systematic_variants()), taps, layer, reached)
        return self._furthest(self._in_parts_seen(whole, taps, reached, passed), taps, reached, layer, passed)

    def _in_parts_seen(self, whole: Iterable[Candidate], taps: Taps, reached: int, passed: int) -> Iterator[Candidate]:
        """Yield the variants restricted to exactly those places at which a value of the subject's has them."""
        parts = PartsSeen(self.alignment, taps, places_between(taps, self.anchors, reached), passed)
        for variant, at in self._in_time(whole if parts.seen else ()):
            with_it = self._taps_with(taps, [Replacement(variant.operation, variant.function, at)], at)
            if with_it and (part := parts.restricted(variant, place(variant.operation, at), with_it)) is not None:
                yield part, at

    def _in_time(self, candidates: Iterable[Candidate]) -> Iterator[Candidate]:
        return itertools.takewhile(lambda candidate: not self.alignment.is_late, candidates)

    def _candidates(self, tried: Iterable[Variant], taps: Taps, layer: int | None, reached: int) -> list[Candidate]:
        return [
            (variant, layer if is_in_block(variant.operation) else None)
            for variant in tried
            if self._concerns(variant.operation, taps, layer, reached)
        ]

    def _concerns(self, operation: str, taps: Taps, layer: int | None, reached: int) -> bool:
        """Return True if the operation lies between the last anchor reached and the next, and is not replaced yet."""
        anchor = self.anchors[reached]
        if any(change.operation == operation and change.layer in (None, layer) for change in self.changes):
            return False
        if operation.startswith("embedding"):
            return anchor == "embedding" or reached <= 1
        if operation == "blocks":
            return True
        if operation == "ln_f":
            return anchor in ("ln_f", "head")
        if operation == "head":
            return anchor == "head"
        if layer is None:
            return False
        # In the order in which the block runs its parts, which another wiring of the block changes.
        order = list(taps)
        before = self.anchors[reached - 1] if reached else ""
        own = place(operation, layer)
        return own in taps and (before not in taps or order.index(own) > order.index(before))

    def _in_the_layer_before(self, layer: int | None, reached: int) -> list[Candidate]:
        before: int | None = None
        if self.anchors[reached].endswith("residual.attn"):
            before = layer - 1 if layer else None
        elif layer is None and reached > 1:
            before = self.alignment.size.layers - 1
        if before is None:
            return []
        return [(variant, before) for variant in variants() if variant.operation in ("residual.mlp", "block")]

    def _in_parts(self, whole: Iterable[Candidate]) -> Iterator[Candidate]:
        """Yield the variants restricted to some of the values, for when none matches all of them."""
        for variant, layer in self._in_time(whole):
            for part in in_parts(variant, heads=self.alignment.size.heads):
                yield part, layer

    def _furthest(
        self, candidates: Iterable[Candidate], taps: Taps, reached: int, layer: int | None, passed: int
    ) -> Match | None:
        """Return the candidates with which the subject passes the most further anchors; None if none passes one."""
        found: list[tuple[int, Variant, Replacement]] = []
        for variant, at in candidates:
            change = Replacement(variant.operation, variant.function, at)
            progress = self._progress(
                self._taps_with(taps, [change], at, whole=at is None or at != layer), [change], reached, passed
            )
            if progress > 0:
                found.append((progress, variant, change))
        if not found:
            return None
        best = self._furthest_in_the_whole(found, reached, passed)
        return Match(tuple(variant for variant, _ in best), best[0][1])

    def _furthest_in_the_whole(
        self, found: list[tuple[int, Variant, Replacement]], reached: int, passed: int
    ) -> list[tuple[Variant, Replacement]]:
        """Return those that take the subject furthest in their layer and, among several faults, in the whole model.

        A value can match by chance, as the MLP's output for the block's input does where the MLP comes first. In the
        whole model, in this layer or in all of them, only the true variant takes the subject to the end.
        """
        most = max(progress for progress, *_ in found)
        best = [(variant, change) for progress, variant, change in found if progress == most]
        if len({variant.fault for variant, _ in best}) < 2:
            return best
        whole = []
        for _, change in best:
            in_every_layer = Replacement(change.operation, change.function)
            whole.append(
                max(
                    self._progress(self._taps_with({}, [tried], None), [tried], reached, passed)
                    for tried in (change, in_every_layer)
                )
            )
        return [pair for pair, progress in zip(best, whole, strict=True) if progress == max(whole)]

    def _most_steps(self, taps: Taps, layer: int | None, passed: int, candidates: list[Candidate]) -> Match | None:
        """Return the candidate that matches most steps within the block, for two mistakes before the next anchor.

        No single variant reaches the anchor then. The candidate must match its own operation and at least one that
        follows, because a single value may match by chance; within attention it need not, if what it reads agrees.
        """
        if layer is None:
            return None
        known = self.alignment.steps_matched(taps, layer, passed)
        best: Match | None = None
        most = 0
        for variant, at in candidates:
            if at != layer or variant.operation == "block":
                continue
            change = Replacement(variant.operation, variant.function, at)
            with_it = self._taps_with(taps, [change], at)
            own = self.alignment.step_of(with_it, place(variant.operation, at)) if with_it else None
            if own is None or own <= passed or own in known:
                continue
            new = self.alignment.steps_matched(with_it, layer, passed) - known
            enough = 0 if self._follows_what_agrees(variant.operation, taps, layer) else 1
            if own in new and len(new) > max(most, enough):
                best, most = Match((variant,), change), len(new)
        return best

    def _follows_what_agrees(self, operation: str, taps: Taps, layer: int) -> bool:
        """Return True for a step of attention between queries and values whose input the subject computes."""
        steps = ("attn.scores", "attn.scale", "attn.mask", "attn.softmax")
        if operation not in steps[1:]:
            return False
        return self.alignment.step_of(taps, place(steps[steps.index(operation) - 1], layer)) is not None

    def _first_of_two(
        self,
        candidates: list[Candidate],
        taps: Taps,
        reached: int,
        layer: int | None,
        passed: int,
        matched: Sequence[Variant],
    ) -> Match | None:
        """Return the first of two variants that only together reach the next anchor, as where one kernel does it all.

        Both replace operations that run after the last value that the subject computed.
        """
        if layer is None:
            return None
        order = places_between(taps, self.anchors, reached)
        seen = [n for n, name in enumerate(order) if (self.alignment.step_of(taps, name) or -1) > passed]
        unseen_places = list(enumerate(order))[max(seen, default=-1) + 1 :]
        later = {name.split(".", 2)[2]: n for n, name in unseen_places if name.startswith(f"h.{layer}.")}
        # The first row of each fault, which is the likeliest: all pairs of all rows would take minutes.
        unseen = {
            (variant.fault, variant.operation): variant
            for variant, at in reversed(candidates)
            if at == layer and variant.operation in later
        }.values()
        pairs = [(a, b) for a, b in itertools.permutations(unseen, 2) if later[a.operation] < later[b.operation]]
        pairs.sort(key=lambda pair: -sum(variant in matched for variant in pair))
        best: Match | None = None
        most = 0
        for first, second in pairs:
            if self.alignment.is_late:
                break
            changes = [Replacement(variant.operation, variant.function, layer) for variant in (first, second)]
            progress = self._progress(self._taps_with(taps, changes, layer), changes, reached, passed)
            if progress > most:
                best, most = Match((first,), changes[0]), progress
        return best

    def _taps_with(self, taps: Taps, changes: Sequence[Replacement], layer: int | None, *, whole: bool = False) -> Taps:
        """Return the formula's values with the changes, of its block alone or of the whole model; {} if it fails."""
        changes = [*changes, *self.changes, *self.alignment.given]
        formula = Formula(self.alignment.size, self.alignment.weights, changes)
        try:
            if layer is None or whole:
                formula(self.alignment.ids)
            else:
                before = "embedding" if layer == 0 else f"h.{layer - 1}"
                formula.taps |= {name: taps[name] for name in ("embedding.token", "embedding", before) if name in taps}
                formula.do("block", layer, taps[before])
        except (RuntimeError, IndexError, KeyError):
            return {}  # the variant is not defined for these sizes
        return formula.taps

    def _progress(self, taps: Taps, changes: Sequence[Replacement], reached: int, passed: int) -> int:
        """Return how many more anchors the subject passes with the changes.

        Each anchor must have a value that no earlier place has: a change that leaves something out puts an old value
        at a new place, and then only the anchors after it can decide.
        """
        further, whole, stale, agrees = 0, "model" in taps, False, False
        value: Any = None
        for number in range(reached, len(self.anchors)):
            name = self.anchors[number]
            if name not in taps and not whole:
                if further or not stale:
                    break
                taps, whole = self.alignment.taps([*changes, *self.changes]), True
            if name not in taps:
                continue
            same, value = taps[name] is value, taps[name]  # a block's value is that of its last sum: one tensor
            if name == "head":
                agrees, stale = self.alignment.logits_agree(taps[name]), False
            elif not same:
                step = self.alignment.observed.find(taps[name], after=passed)
                # A copy of what was right before, such as a view of it, is computed after it, too.
                first = self.alignment.observed.find(taps[name])
                stale = first is not None and (first <= passed or self.alignment.is_stale(taps, name))
                agrees = step is not None and not stale
                passed = step if step is not None and agrees else passed
            if agrees:
                further = number - reached + 1
        return further
