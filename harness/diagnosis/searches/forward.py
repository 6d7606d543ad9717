"""The forward pass explained: the first operation that differs, what stands in its place, and the next one after it."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import SAME, Observation, SourceLine, alike, sums
from harness.diagnosis.searches import constant_fit
from harness.oracle.formula import At, Formula, Replacement, place, visible
from harness.oracle.variants import Variant, in_parts, variants

State = dict[str, Tensor]
MOST_FINDINGS = 12


@dataclasses.dataclass
class Explained:
    """The outcome: findings in execution order, the changes that make GPT-2 compute what the subject computes."""

    findings: list[Finding]
    changes: list[Replacement]
    complete: bool  # whether, with those changes, the logits agree
    forced: bool  # whether one of the changes is the subject's own value, which holds for these ids alone


def explain(
    observed: Observation,
    ids: Tensor,
    weights: State,
    size: Size,
    forced: dict[str, Tensor],
    blocks: Mapping[int, nn.Module] | None = None,
) -> Explained:
    """Explain why the subject's forward pass differs from GPT-2's with the same float64 weights.

    `forced`: what the subject's blocks gave (`h.0` and so on, and `embedding`), where hooks can see it; with it, the
    search goes on behind a difference that no explanation fits. `blocks`: the subject's modules, for their lines.
    """
    return _Search(observed, ids, weights, size, forced, blocks or {}).run()


@dataclasses.dataclass
class _Found:
    """One explanation in one layer."""

    fitting: tuple[Variant, ...]  # all that fit, the likeliest first; none where nothing does
    layer: int | None
    finding: Finding

    @property
    def explanation(self) -> Variant | None:
        return self.fitting[0] if self.fitting else None


def place_of(
    step: int, observed: Observation, ids: Tensor, weights: State, size: Size
) -> tuple[str, str, Tensor | None]:
    """The place whose value a right subject had last at a step, the one that comes after it, and that value."""
    return _Search(observed, ids, weights, size, {}, {}).where_of(step)


class _Search:
    def __init__(
        self,
        observed: Observation,
        ids: Tensor,
        weights: State,
        size: Size,
        forced: dict[str, Tensor],
        blocks: Mapping[int, nn.Module],
    ) -> None:
        self.observed, self.ids, self.weights, self.size, self.forced = observed, ids, weights, size, forced
        self.blocks = blocks
        self.changes: list[Replacement] = []
        self.found: list[_Found] = []
        self._printed: dict[str, Any] = {}
        self._prints: list[tuple[int, tuple[float, float, float]]] = []
        anchors = [f"h.{layer}{part}" for layer in range(size.layers) for part in (".residual.attn", "")]
        self.anchors = ["embedding", *anchors, "ln_f", "head"]

    def run(self) -> Explained:
        complete = False
        for _ in range(MOST_FINDINGS):
            taps = self._taps(self.changes)
            reached = self._reached(taps)
            if reached == len(self.anchors):
                complete = True
                break
            expected = taps.get(self.anchors[reached])
            if isinstance(expected, Tensor) and bool(expected.isnan().all()):
                break  # with what was found GPT-2 itself gives no numbers here: there is nothing left to compare
            if not self._step(taps, reached):
                break
        return Explained(
            _merged(self.found, self.size.layers - 1),
            self.changes,
            complete,
            any(not item.fitting for item in self.found),
        )

    def _taps(self, changes: Sequence[Replacement]) -> dict[str, Any]:
        formula = Formula(self.size, self.weights, changes)
        formula(self.ids)
        return formula.taps

    def _reached(self, taps: dict[str, Any]) -> int:
        """How many anchors, in execution order, the subject passes with the right values."""
        if self._logits_agree(taps["head"]):
            return len(self.anchors)
        seen = [number for number, anchor in enumerate(self.anchors[:-1]) if self._seen(taps, anchor) is not None]
        return max(seen, default=-1) + 1

    def _step_before(self, taps: dict[str, Any], reached: int) -> int:
        """The step at which the subject passed the last right anchor."""
        step = self._seen(taps, self.anchors[reached - 1]) if reached else None
        return -1 if step is None else step

    def _logits_agree(self, logits: Tensor) -> bool:
        gap = (self.observed.logits - logits).abs().max()
        return bool(gap <= SAME * logits.abs().max())

    def _seen(self, taps: dict[str, Any], name: str) -> int | None:
        """The step at which the subject computed the value of this place."""
        value = taps.get(name)
        if isinstance(value, tuple):
            steps = [self.observed.find(part) for part in value]
            return None if None in steps else max(step for step in steps if step is not None)
        return None if value is None else self.observed.find(value)

    def _step(self, taps: dict[str, Any], reached: int) -> bool:
        """Find what is wrong at the anchor where the subject leaves GPT-2's way; False where the search must end."""
        anchor = self.anchors[reached]
        layer = int(anchor.split(".")[1]) if anchor.startswith("h.") else None
        fitting, change = self._best(taps, reached, layer)
        if change is not None:
            self.changes.insert(0, change)
            self.found.append(_Found(fitting, change.layer, self._explained(fitting, change.layer, taps, reached)))
            return True
        self.found.append(_Found((), layer, self._unexplained(taps, anchor, layer)))
        return self._force(anchor, layer)

    def _best(
        self, taps: dict[str, Any], reached: int, layer: int | None
    ) -> tuple[tuple[Variant, ...], Replacement | None]:
        """The variants that take the subject furthest; where none does, the one that explains most of its steps."""
        passed = self._step_before(taps, reached)
        concerned = [e for e in variants() if self._concerns(e, layer, reached)]
        here = [(e, layer if _is_of_a_block(e.operation) else None) for e in concerned]
        # What is wrong in one layer is often wrong in all; and a value may be right, and changed before it is read.
        again = (
            [(e, layer if _is_of_a_block(e.operation) else None) for e in self.found[-1].fitting] if self.found else []
        )
        groups: tuple[Iterable[tuple[Variant, int | None]], ...] = (
            [pair for pair in again if self._concerns(pair[0], layer, reached)],
            here,
            self._in_the_layer_before(layer, reached),
        )
        for candidates in groups:
            if (best := self._fitting(candidates, taps, reached, layer, passed))[1] is not None:
                return best
        if (best := self._most_steps(taps, layer, passed, here))[1] is not None:
            return best
        return self._fitting(self._in_parts(here), taps, reached, layer, passed)

    def _fitting(
        self,
        candidates: Iterable[tuple[Variant, int | None]],
        taps: dict[str, Any],
        reached: int,
        layer: int | None,
        passed: int,
    ) -> tuple[tuple[Variant, ...], Replacement | None]:
        """Of the candidates those with which the subject passes further anchors."""
        furthest: list[tuple[int, Variant, Replacement]] = []
        for explanation, at in candidates:
            change = Replacement(explanation.operation, explanation.function, at)
            found = self._taps_from(taps, change, at, whole=at is None or at != layer)
            progress = self._progress(found, change, reached, passed)
            if progress > 0:
                furthest.append((progress, explanation, change))
        if not furthest:
            return (), None
        best = self._furthest(furthest, reached, passed)
        return tuple(e for e, _ in best), best[0][1]

    def _furthest(
        self, found: list[tuple[int, Variant, Replacement]], reached: int, passed: int
    ) -> list[tuple[Variant, Replacement]]:
        """Of the variants that fit, those that take the subject furthest: in their layer, then in the whole.

        A value may be met by chance, as the MLP's answer to the block's input is where the MLP comes first. In the
        whole, in this layer or in all of them, only what is really there takes the subject to the end.
        """
        most = max(progress for progress, *_ in found)
        best = [(e, change) for progress, e, change in found if progress == most]
        if len({e.fault for e, _ in best}) < 2:
            return best
        whole = []
        for _, change in best:
            ways = [change, Replacement(change.operation, change.function)]
            whole.append(max(self._progress(self._taps_from({}, w, None), w, reached, passed) for w in ways))
        return [pair for pair, progress in zip(best, whole, strict=True) if progress == max(whole)]

    def _in_parts(self, whole: list[tuple[Variant, int | None]]) -> Iterator[tuple[Variant, int | None]]:
        """What is wrong in some of the values alone, tried where nothing fits all of them."""
        for explanation, layer in whole:
            for part in in_parts(explanation, heads=self.size.heads):
                yield part, layer

    def _in_the_layer_before(self, layer: int | None, reached: int) -> list[tuple[Variant, int | None]]:
        before: int | None = None
        if self.anchors[reached].endswith("residual.attn"):
            before = layer - 1 if layer else None
        elif layer is None and reached > 1:
            before = self.size.layers - 1
        if before is None:
            return []
        return [(e, before) for e in variants() if e.operation in ("residual.mlp", "block")]

    def _most_steps(
        self, taps: dict[str, Any], layer: int | None, passed: int, candidates: list[tuple[Variant, int | None]]
    ) -> tuple[tuple[Variant, ...], Replacement | None]:
        """With two mistakes before the next anchor no single explanation reaches it; the first of them shows inside.

        It must explain the operation itself and at least one that follows: a single value may be there by chance.
        """
        if layer is None:
            return (), None
        known = self._steps_explained(taps, layer, passed)
        best: tuple[tuple[Variant, ...], Replacement | None] = (), None
        most = 1
        for explanation, at in candidates:
            if at != layer or explanation.operation == "block":
                continue
            change = Replacement(explanation.operation, explanation.function, at)
            with_it = self._taps_from(taps, change, at)
            own = self._seen(with_it, place(explanation.operation, at)) if with_it else None
            if own is None or own <= passed or own in known:
                continue
            new = self._steps_explained(with_it, layer, passed) - known
            if own in new and len(new) > most:
                best, most = ((explanation,), change), len(new)
        return best

    def _concerns(self, explanation: Variant, layer: int | None, reached: int) -> bool:
        """Whether the explanation's operation lies where the subject leaves GPT-2's way."""
        operation, anchor = explanation.operation, self.anchors[reached]
        already = any(change.operation == operation and change.layer in (None, layer) for change in self.changes)
        if already:
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
        if anchor.endswith("residual.attn"):
            return True
        return not operation.startswith(("ln_1", "attn"))

    def _taps_from(
        self, taps: dict[str, Any], change: Replacement, layer: int | None, *, whole: bool = False
    ) -> dict[str, Any]:
        """What the formula computes with the change: of its own block alone, or of everything."""
        formula = Formula(self.size, self.weights, [change, *self.changes])
        try:
            if layer is None or whole:
                formula(self.ids)
            else:
                formula.do("block", layer, taps["embedding"] if layer == 0 else taps[f"h.{layer - 1}"])
        except (RuntimeError, IndexError, KeyError):
            return {}  # this explanation does not fit these sizes
        return formula.taps

    def _progress(self, taps: dict[str, Any], change: Replacement, reached: int, passed: int) -> int:
        """How many more anchors the subject passes, with the change, from the one where it left.

        Each must be a value that nothing before it has: with a change that leaves something out, an old value stands
        at a new place, and only what comes after it can decide.
        """
        further, whole, stale, agrees = 0, "model" in taps, False, False
        value: Any = None
        for number in range(reached, len(self.anchors)):
            name = self.anchors[number]
            if name not in taps and not whole:
                if further or not stale:
                    break
                taps, whole = self._taps([change, *self.changes]), True
            if name not in taps:
                continue
            same, value = taps[name] is value, taps[name]  # a block ends in its last sum, whichever that is
            if name == "head":
                agrees, stale = self._logits_agree(taps[name]), False
            elif not same:
                step = self.observed.find(taps[name], after=passed)
                stale = (self.observed.find(taps[name]) is not None) if step is None else self._is_old(taps, name)
                agrees = step is not None and not stale
                passed = step if step is not None and agrees else passed
            if agrees:
                further = number - reached + 1
        return further

    def _is_old(self, taps: dict[str, Any], name: str) -> bool:
        """Whether the value at a place is one that an earlier place has as well."""
        value, names = taps[name], list(taps)
        earlier = names[: names.index(name)]
        if name.count(".") == 1 and earlier and taps[earlier[-1]] is value:
            earlier.pop()  # a block's value is that of its last operation
        return any(
            isinstance(other := taps[place], Tensor)
            and (other is value or (other.shape == value.shape and torch.equal(other, value)))
            for place in earlier
        )

    def _steps_explained(self, taps: dict[str, Any], layer: int, passed: int) -> set[int]:
        steps = {self._seen(taps, name) for name in taps if name.startswith(f"h.{layer}.")}
        return {step for step in steps if step is not None and step > passed}

    def _explained(
        self, fitting: tuple[Variant, ...], layer: int | None, taps: dict[str, Any], reached: int
    ) -> Finding:
        explanation = fitting[0]
        name = place(explanation.operation, layer)
        with_it = self._taps(self.changes)
        line = self._line_of(
            with_it,
            name,
            self._seen(with_it, name),
            layer,
            made=_is_a_setting(explanation),
            wiring=_is_wiring(explanation),
        )
        return Finding(
            where=place(explanation.component, layer),
            fault=explanation.fault,
            cause=explanation.says,
            evidence=self._evidence(taps, with_it, reached),
            source="" if line is None else str(line),
            text="" if line is None else line.text,
        )

    def _evidence(self, right: dict[str, Any], wrong: dict[str, Any], reached: int) -> str:
        """The subject's own value at the next anchor, held against GPT-2's and against the explanation's."""
        for anchor in self.anchors[reached:]:
            expected, explained = right.get(anchor), wrong.get(anchor)
            step = None if explained is None else self._seen(wrong, anchor)
            own = self.observed.logits if anchor == "head" else self._own(step)
            agrees = anchor != "head" or (explained is not None and self._logits_agree(explained))
            if own is None or expected is None or explained is None or not agrees:
                continue
            left = min(_gap(own, explained.permute(order)) for order in _orders(explained.ndim))
            return (
                f"{_in_words(anchor)} differs from GPT-2's by {_gap(own, expected):.1e}; with this in GPT-2's place "
                f"by {left:.0e}"
            )
        return "with this in GPT-2's place more of the subject's values are met; more is wrong before they meet again"

    def _own(self, step: int | None) -> Tensor | None:
        return None if step is None else self.observed.steps[step].tensor

    def where_of(self, step: int) -> tuple[str, str, Tensor | None]:
        """The place whose right value the subject had last at a step, the place after it, and that value."""
        taps = self._taps(self.changes)
        order = [name for name in taps if name not in ("model", "blocks")]
        before = [name for name in order if (seen := self._seen(taps, name)) is not None and seen < step]
        last = max((order.index(name) for name in before), default=-1)
        value = taps[order[max(last, 0)]]
        return order[max(last, 0)], order[min(last + 1, len(order) - 1)], value if isinstance(value, Tensor) else None

    def _line_of(
        self, taps: dict[str, Any], name: str, found: int | None, layer: int | None, *, made: bool, wiring: bool
    ) -> SourceLine | None:
        """The line that computed the wrong value; where none did (a step left out), the one that came next instead.

        What is wrong in how a block is put together stands in the block, not in the part that the value comes from.
        """
        order = list(taps)
        position = order.index(name)
        found = self._in_a_head(taps[name]) if found is None else found
        # A block's value is that of its last sum, and not an earlier one.
        ends = name.count(".") == 1
        earlier = [o for o in order[max(0, position - 6) : position] if not (ends and taps[o] is taps[name])]
        last = max((step for other in earlier if (step := self._seen(taps, other)) is not None), default=-1)
        owner = None if layer is None or not wiring else self.blocks.get(layer)
        if found is not None and found > last and owner is None:
            return self.observed.line(found, made=made)
        for other in order[position + (owner is None) :]:
            step = self._seen(taps, other)
            if step is not None and step > last:
                return self.observed.steps[step].line_in(owner)
        return None if found is None else self.observed.steps[found].line_in(owner)

    def _in_a_head(self, value: Any) -> int | None:
        """The step that gave the value of the first head alone, where heads are computed one by one."""
        if isinstance(value, tuple):
            value = value[0]
        return self.observed.find(value[:, 0]) if isinstance(value, Tensor) and value.ndim == 4 else None

    def _unexplained(self, taps: dict[str, Any], anchor: str, layer: int | None) -> Finding:
        """Where it leaves GPT-2's way when nothing in the table explains it, and what can be said of the value."""
        names = _between(list(taps), self.anchors, anchor)
        seen = {name: self._seen(taps, name) for name in names}
        last = max((number for number, name in enumerate(names) if seen[name] is not None), default=-1)
        where = names[last + 1] if last + 1 < len(names) else anchor
        passed = self._step_before(taps, self.anchors.index(anchor))
        after = max((step for step in seen.values() if step is not None), default=passed)
        before = f"h.{layer - 1}" if layer else "embedding"
        changed_between = last < 0 and layer is not None and self._differs(before, taps)
        if changed_between:
            where = before
        fit = None if changed_between else self._fit(taps, names[last + 1 :], layer, after)
        line = self.observed.line(self._first_stranger(taps, after), made=fit is not None and fit.fault != "")
        return Finding(
            where=where,
            fault=fit.fault if fit else "",
            cause=fit.says if fit else "no explanation of the catalogue fits",
            evidence="; ".join(
                text for text in ("what comes before it agrees with GPT-2", *self._about(anchor, taps, after)) if text
            ),
            source="" if line is None else str(line),
            text="" if line is None else line.text,
        )

    def _differs(self, name: str, taps: dict[str, Any]) -> bool:
        """Whether what the next block reads is not what GPT-2 has there, though the subject computed that as well."""
        value = self.forced.get(name)
        return value is not None and not _gap(value, taps[name]) <= SAME * float(taps[name].abs().max())

    def _fit(self, taps: dict[str, Any], names: list[str], layer: int | None, after: int) -> constant_fit.Fit | None:
        """A constant that makes one of the operations give a value of the subject's."""
        for name in names:
            expected = taps[name]
            if not isinstance(expected, Tensor):
                continue
            found = [v for v in self._later(expected, after, taps) if bool(torch.isfinite(v).all())]
            operation = name.split(".", 2)[2] if layer is not None and name.count(".") > 1 else name
            fit = None
            if operation in ("ln_1", "ln_2", "ln_f"):
                fit = constant_fit.epsilon(
                    operation, At(Formula(self.size, self.weights), layer), self._input(taps, name), found
                )
            elif operation == "attn.mix" and layer is not None:
                fit = constant_fit.scale(self._attend(taps, layer), found, self.size.head_width**-0.5)
            if operation == "attn.scale":
                fit = constant_fit.scaled(expected, found, self.size.head_width**-0.5)
            if bool(torch.isfinite(expected).all()):
                fit = fit or constant_fit.factor(name, expected, found) or constant_fit.offset(name, expected, found)
            if fit is not None:
                return fit
        return None

    def _later(self, expected: Tensor, after: int, taps: dict[str, Any]) -> list[Tensor]:
        own = [
            tensor
            for number, tensor in self.observed.like(expected)
            if number > after and not self._is_known(self.observed.steps[number].tensor, taps)
        ]
        return [*own, self.observed.logits] if expected.shape == self.observed.logits.shape else own

    def _input(self, taps: dict[str, Any], name: str) -> Tensor:
        """What a norm reads: the stream as it is there."""
        order = [anchor for anchor in taps if anchor == "embedding" or anchor in self.anchors]
        position = list(taps).index(name)
        earlier = [anchor for anchor in order if list(taps).index(anchor) < position]
        stream: Tensor = taps[earlier[-1]]
        return stream

    def _attend(self, taps: dict[str, Any], layer: int) -> Callable[[float], Tensor]:
        q, k, v = taps[f"h.{layer}.attn.split"]
        scores = (q @ k.mT).masked_fill(~visible(q.shape[2], k.shape[2]), -math.inf)
        return lambda factor: (scores * factor).softmax(-1) @ v

    def _about(self, anchor: str, taps: dict[str, Any], after: int) -> list[str]:
        own = self.observed.logits if anchor == "head" else self.forced.get(anchor)
        expected = taps[anchor]
        told = f"{_in_words(anchor)} differs by {_gap(own, expected):.1e}" if own is not None else ""
        if own is not None and not bool(torch.isfinite(own).all()):
            told = f"{_in_words(anchor)} is not finite"
        values = [own] if own is not None else self._later(expected, after, taps)
        return [told, constant_fit.where_it_differs(expected, values)]

    def _first_stranger(self, taps: dict[str, Any], after: int) -> int | None:
        """The first step after the last right one whose value GPT-2 does not compute."""
        return next(
            (
                number
                for number in range(after + 1, len(self.observed.steps))
                if not self._is_known(self.observed.steps[number].tensor, taps)
            ),
            None,
        )

    def _is_known(self, tensor: Tensor, taps: dict[str, Any]) -> bool:
        """Whether a value is one that GPT-2 computes as well, or a weight."""
        own = sums(tensor)
        return any(count == tensor.numel() and alike(own, other, SAME) for count, other in self._fingerprints(taps))

    def _fingerprints(self, taps: dict[str, Any]) -> list[tuple[int, tuple[float, float, float]]]:
        if self._printed is not taps:  # kept itself, and not by its id: another dict may come to have that
            self._printed = taps
            values = [part for value in taps.values() for part in (value if isinstance(value, tuple) else (value,))]
            values += list(self.weights.values())
            self._prints = [(value.numel(), sums(value)) for value in values]
        return self._prints

    def _force(self, anchor: str, layer: int | None) -> bool:
        """Put the subject's own value where no explanation fits, so that what comes after it is judged on its own."""
        name = anchor if layer is None else f"h.{layer}"
        value = self.forced.get(name)
        if value is None or not bool(torch.isfinite(value).all()) or name == "head":
            return False
        operation = name if layer is None else "block"
        self.changes.append(Replacement(operation, functools.partial(_constant, value), layer))
        return True


def _constant(value: Tensor, *inputs: Any) -> Tensor:
    return value


def _in_words(anchor: str) -> str:
    """`h.1.residual.attn` -> what stands there, for a sentence."""
    if anchor == "head":
        return "the logits' value"
    words = anchor.split(".")
    if anchor.startswith("h."):
        return f"the stream after block {words[1]}" + ("'s attention" if len(words) > 2 else "")
    return {"embedding": "the embeddings' sum", "ln_f": "the final norm's output"}[anchor]


def _is_a_setting(explanation: Variant) -> bool:
    """Whether what is wrong stands where a layer is made (`nn.GELU()`, `eps=1e-6`), not where it is called."""
    return explanation.operation == "mlp.activation" or explanation.fault.startswith(("ln-eps", "qkv-bias", "mlp-bias"))


def _is_wiring(explanation: Variant) -> bool:
    """Whether what is wrong is how a block is put together: its sums, which norm stands where, the block itself."""
    put_together = explanation.operation.startswith(("residual", "block"))
    return put_together or explanation.fault.startswith(("ln-missing", "ln-shared", "ln-swapped"))


def _is_of_a_block(operation: str) -> bool:
    return operation.startswith(("ln_1", "ln_2", "attn", "mlp", "residual", "block")) and operation != "blocks"


def _between(order: list[str], anchors: list[str], anchor: str) -> list[str]:
    """The places after the anchor before, up to this one."""
    number = anchors.index(anchor)
    before = anchors[number - 1] if number else None
    start = order.index(before) + 1 if before in order else 0
    return order[start : order.index(anchor) + 1]


def _gap(found: Tensor, expected: Tensor) -> float:
    if found.numel() != expected.numel():
        return math.nan
    difference = (found.reshape(-1) - expected.reshape(-1)).abs()
    return float(torch.where(found.reshape(-1) == expected.reshape(-1), 0.0, difference).max())


def _orders(ndim: int) -> list[tuple[int, ...]]:
    import itertools

    return list(itertools.permutations(range(ndim)))


def _merged(found: list[_Found], last: int) -> list[Finding]:
    """One finding for one cause: an explanation that fits in several layers is told once, for all of them."""
    groups: list[tuple[tuple[Variant, ...], list[_Found]]] = []
    for item in found:
        for number, (fitting, members) in enumerate(groups):
            common = tuple(explanation for explanation in fitting if explanation in item.fitting)
            if common:
                groups[number] = common, [*members, item]
                break
        else:
            groups.append((item.fitting, [item]))
    return [_told(fitting, members, last) for fitting, members in groups if not any(e.harmless for e in fitting)]


def _told(fitting: tuple[Variant, ...], members: list[_Found], last: int) -> Finding:
    first = members[0].finding
    if not fitting:
        return first
    layers = [item.layer for item in members if item.layer is not None]
    explanation, cause = fitting[0], fitting[0].says
    where, fault = place(explanation.component, members[0].layer), explanation.fault
    if fault == "mask-missing" and layers == [last]:
        fault = "mask-missing-last-layer"
    if layers == list(range(last + 1)):
        where = place(explanation.component, layers[0]).replace(f"h.{layers[0]}", "h.*", 1)
    elif len(layers) > 1:
        cause = f"in layers {', '.join(map(str, layers))}: {cause}"
    alike = dict.fromkeys(other.fault for other in fitting if other.fault != fault)
    same = [other.says for other in fitting[1:] if other.fault != explanation.fault and other.says != explanation.says]
    if same:
        cause += f" (the same program: {same[0]})"
    return dataclasses.replace(first, where=where, fault=fault, cause=cause, alike=tuple(alike))
