"""Find the GPT-2 that a subject's declarations mean, and those declarations that the subject does not bear out."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.oracle.declared import compared_with
from harness.oracle.deviation_forms import Form, combinations, forms_of
from harness.oracle.deviations import Deviation
from harness.oracle.formula import Formula, Replacement
from harness.oracle.gpt2_with_deviations import HEAD, HEAD_BIAS, DeviatingGPT2, own_size, padding
from harness.oracle.named_deviations import BEYOND_GPT2, BIASES
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family, published_shapes

SIZE = SIZES["debug"]
PARTS = ("ln_1", "attn", "ln_2", "mlp")
AGREES = 1e-9  # relative to the largest value, in float64: rounding is some 1e-15


@dataclass
class _Observed:
    """What a subject computes at the debug size, in float64, part by part."""

    ids: Tensor
    given: dict[str, Tensor]  # the weights, published names
    read: dict[str, Tensor] = field(default_factory=dict)  # what each part reads, by its place
    answered: dict[str, Tensor] = field(default_factory=dict)  # what it returns for that
    stream: dict[str, Tensor] = field(default_factory=dict)  # the residual stream and the logits


@dataclass(frozen=True, order=True)
class _Score:
    """How well a form explains a subject: parts that agree for their own input, then outputs, then minus the error."""

    parts: int
    outputs: int
    error: float


class DeviationFit:
    """The declared deviations of a subject, fitted to what it computes.

    A declaration may leave open what is meant: the epsilon, or which channels are rotated together. Each part of the
    model is compared for the input that it really reads, so that a bug elsewhere does not matter.
    """

    def __init__(self, deviations: Sequence[Deviation], subject: Subject) -> None:
        self.deviations = tuple(each for each in deviations if each.computed)
        self.subject = subject
        self.missing = _missing_families(subject)
        self._observed: _Observed | None = None
        self.forms: dict[Deviation, list[Form]] = {each: [{}] for each in self.deviations}
        with contextlib.suppress(Exception):  # the checks report why it cannot be built
            module = subject.build(SIZE).module
            self.forms = {each: forms_of(each, module) for each in self.deviations}
        self.best, self.score = self._best(self.forms)

    @property
    def gpt2(self) -> DeviatingGPT2:
        """The GPT-2 with the declared deviations that explains the subject best."""
        return self._gpt2(self.best)

    def gpt2_with(self, deviations: Sequence[Deviation]) -> DeviatingGPT2:
        """Return the GPT-2 with some of the declared deviations, in the forms that explain the subject best."""
        return self._gpt2({each: self.best[each] for each in deviations})

    def unfounded(self) -> dict[str, str]:
        """Return what is wrong with each declaration that the subject does not bear out, by its location."""
        found = {}
        for each in self.deviations:
            if (wrong := self._contradiction(each)) is not None:
                found[each.place] = wrong
        return found

    def _contradiction(self, deviation: Deviation) -> str | None:
        """Return what is wrong with a declaration; None if the subject has the deviation, or if that is not decided."""
        kind = deviation.kind
        assert kind is not None
        absent = f"the subject has no '{deviation.what}' ({deviation.says}); remove it"
        if kind.has:
            thing = BEYOND_GPT2[kind.has[0]]
            return None if _has(self.subject, kind.has[0]) else f"the subject has no {thing}; remove '{deviation.what}'"
        if deviation.id in ("bias-free", "bias-missing", "qkv-bias-missing"):
            present = [name for name in deviation.lacks if name in BIASES and name not in self.missing]
            if present:
                advice = "; if only some are missing, declare what = 'bias-missing' and biases = ['attn.c_attn', ...]"
                return f"the subject has {', '.join(present)}, which '{deviation.what}' says that it has not{advice}"
        if self.forms[deviation] != [{}]:
            _, score = self._best({**self.forms, deviation: [{}]})
            agrees = self._agrees_fully(score) and not self._shows_in_large_values(deviation)
            if score.parts > self.score.parts or agrees:
                return absent
        elif kind.lacks and not set(deviation.lacks) & self.missing:
            return absent
        return None

    def _agrees_fully(self, score: _Score) -> bool:
        observed = self._observed
        return observed is not None and score.outputs == len(observed.stream) > 0

    def _shows_in_large_values(self, deviation: Deviation) -> bool:
        """Return True if the subject is not GPT-2 without the deviation where scores and logits are large.

        A bound on them is beyond what the probe weights give.
        """
        without = self._gpt2({**self.best, deviation: {}})
        try:
            observed = _observe(self.subject, without, "extreme")
        except Exception:  # the checks report why it cannot be built or called
            return False
        return _score(observed, without).outputs < len(observed.stream)

    def _gpt2(self, chosen: Mapping[Deviation, Form]) -> DeviatingGPT2:
        operations = {operation: function for form in chosen.values() for operation, function in form.items()}
        strict = {name for each in chosen if each.id.startswith("bias") for name in each.lacks if name in BIASES}
        lacks = {name for each in chosen for name in each.lacks}
        return DeviatingGPT2(
            tuple(Replacement(operation, function) for operation, function in operations.items()),
            frozenset(strict | (lacks & self.missing)),
            frozenset(thing for each in chosen if each.kind for thing in each.kind.has),
            self.subject,
        )

    def _best(self, forms: Mapping[Deviation, list[Form]]) -> tuple[dict[Deviation, Form], _Score]:
        """Return the forms that explain the subject best; the first ones if there is no choice."""
        choices = list(combinations(forms))
        if self._observed is None:
            try:
                self._observed = _observe(self.subject, self._gpt2(choices[0]), "probe")
            except Exception:  # the checks report why it cannot be built or called
                return choices[0], _Score(0, 0, -math.inf)
        scores = [_score(self._observed, self._gpt2(chosen)) for chosen in choices]
        best = max(range(len(choices)), key=scores.__getitem__)
        return choices[best], scores[best]


def _missing_families(subject: Subject) -> set[str]:
    """Return the families of GPT-2's parameters, and the gate's bias, that the subject has no parameter for."""
    try:
        model = subject.build(SIZE)
        mapped = {family(row.published) for row in model.weights.rows}
    except Exception:  # the checks report why it cannot be built
        return set()
    published = {family(name) for name in published_shapes(SIZE)}
    return (published | {"mlp.c_gate.bias"}) - mapped


def _has(subject: Subject, thing: str) -> bool:
    """Return True if the subject has a thing of `BEYOND_GPT2`, or if some of its parameters could not be mapped."""
    own = own_size(subject, SIZE)
    if thing == "padding":
        return padding(subject, SIZE) > 0
    try:
        weights = subject.build(SIZE).weights
    except Missing:
        return True
    if weights.unmapped_parameters:
        return True
    rows = {row.published for row in weights.rows}
    return {
        "head": HEAD in rows,
        "head bias": HEAD_BIAS in rows,
        "gate": own.gated,
        "hidden width": own.hidden_width != SIZE.hidden_width,
        "key-value heads": own.key_value_width != SIZE.key_value_width,
    }[thing]


def _observe(subject: Subject, gpt2: DeviatingGPT2, kind: Weights) -> _Observed:
    """Run the subject with weights of the declared GPT-2."""
    with compared_with(gpt2):
        weights = state(SIZE.name, kind)
    ids, _ = batch(SIZE, "random", rows=2, length=SIZE.context)
    model = build_with_weights(gpt2.copy_of_subject(subject), SIZE, weights, "float64")
    given = {
        name: torch.zeros_like(tensor, dtype=torch.float64) if family(name) in gpt2.absent else tensor.double()
        for name, tensor in weights.items()
    }
    observed = _Observed(ids, given)
    components = _components(model)
    with torch.no_grad(), model.watched(components, read=observed.read, answered=observed.answered):
        logits = model.logits(ids)
    with contextlib.suppress(Exception), torch.no_grad(), model.block_outputs() as outputs:
        model.logits(ids)
    observed.stream = {name.replace("block ", "h."): tensor for name, tensor in outputs.items()}
    observed.stream["head"] = logits
    return observed


def _components(model: Model) -> dict[str, str]:
    """Return the parts of the subject that are modules, by place."""
    places = [*(f"h.{layer}.{part}" for layer in range(SIZE.layers) for part in PARTS), "ln_f"]
    found = {}
    for place in places:
        with contextlib.suppress(Exception):  # it is no module of its own
            model.component(f"transformer.{place}")
            found[place] = f"transformer.{place}"
    return found


def _score(observed: _Observed, gpt2: DeviatingGPT2) -> _Score:
    """Return how well GPT-2 with these deviations explains what was observed."""
    with compared_with(gpt2), torch.no_grad():
        formula = Formula(gpt2.sized(SIZE), observed.given)
        parts = [_error(_part(formula, place, x), observed.answered.get(place)) for place, x in observed.read.items()]
        try:
            formula(observed.ids)
        except (RuntimeError, KeyError, IndexError):
            return _Score(0, 0, -math.inf)
        outputs = [_error(formula.taps.get(place), found) for place, found in observed.stream.items()]
    return _Score(
        sum(error <= AGREES for error in parts),
        sum(error <= AGREES for error in outputs),
        -sum(min(error, 1.0) for error in (*parts, *outputs)),
    )


def _part(formula: Formula, place: str, x: Tensor) -> Any:
    """Return what a part of GPT-2 returns for `x` (B, T, C); None if it fails."""
    words = place.split(".")
    try:
        return formula.do(words[-1], int(words[1]) if words[0] == "h" else None, x)
    except (RuntimeError, KeyError, IndexError):
        return None


def _error(expected: Any, found: Tensor | None) -> float:
    """Return the largest difference, relative to the largest expected value; infinity if they cannot be compared."""
    if not isinstance(expected, Tensor) or found is None or expected.shape != found.shape:
        return math.inf
    error = float((expected - found).abs().max() / expected.abs().max().clamp(min=1e-300))
    return error if math.isfinite(error) else math.inf
