"""GPT-2 with declared deviations: the truth that a subject is held against which differs on purpose."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import Missing
from harness.core.sizes import SIZES, Size
from harness.judging.run_check import Record
from harness.oracle.deviations import Deviation
from harness.oracle.formula import OPERATIONS, At, Formula, Operation, Replacement
from harness.oracle.variants import variants
from harness.subjects.model import Model, Subject
from harness.subjects.weight_map import MappedWeight, WeightMap, family, published_shapes
from harness.suites.expectations import judge
from harness.suites.measure_registry import Reading

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class DeviatingGPT2:
    """How GPT-2 is to be changed: operations, families of biases that are not there, a head of its own, more rows."""

    changes: tuple[Replacement, ...] = ()
    absent: frozenset[str] = frozenset()
    untied: bool = False
    padded: bool = False

    def truth(self, size: Size, state: Mapping[str, Tensor], dtype: str) -> Model:
        """The formula of GPT-2 with the deviations, holding `state` in `dtype`, called as the oracle is."""
        module = _Formula(size, state, getattr(torch, dtype), self)
        rows = [MappedWeight(name, name) for name in module.names]
        return Model(module.eval(), size, lambda m, ids, targets: (m(ids), None), WeightMap(tuple(rows)))

    def subject(self, subject: Subject) -> Subject:
        """The subject under another identity, so that what was measured without the deviations is not taken for it.

        Of a padded vocabulary's logits those of the vocabulary are judged.
        """
        made = copy.copy(subject)
        if self.padded:
            made.build = lambda *args, **kwargs: _cut(subject.build(*args, **kwargs))  # type: ignore[method-assign]
        return made

    def judged_again(self, record: Record, subject: Subject) -> Record:
        """The record with what the deviations account for taken off its value: parameters, and families of weights."""
        size = SIZES.get(str(record.check.parameters.get("size")))
        if record.verdict != "fail" or size is None:
            return record
        value = record.value
        if record.check.measure == "parameter_count":
            value -= self.excess(size, subject, bool(record.check.parameters.get("tied", True)))
        elif isinstance(value, Mapping):
            own = {HEAD} if self.untied else set()
            value = {key: found for key, found in value.items() if key not in self.absent | own}
            if self.padded and "wte.weight" in value and record.check.measure == "parameters_by_component":
                value["wte.weight"] -= _padding(subject, size) * size.width
        verdict = judge(Reading(value, record.unit), record.check.expected)
        if not verdict.passed:
            return record
        return replace(record, verdict="pass", message="", value=value, where=(), found=verdict.found)

    def excess(self, size: Size, subject: Subject, tied: bool = True) -> int:
        """Parameters beyond those of GPT-2, or short of them (negative); `tied` says whether GPT-2's head is."""
        absent = sum(
            torch.Size(shape).numel() for name, shape in published_shapes(size).items() if family(name) in self.absent
        )
        padding = _padding(subject, size) * size.width if self.padded else 0
        head = size.vocab_size * size.width + padding if self.untied and tied else 0
        return head + padding - absent


def forms_with_deviations(deviations: Sequence[Deviation], subject: Subject) -> Iterator[DeviatingGPT2]:
    """What the declarations change; several where a fault has several forms, to be tried one after the other."""
    words = {each.what for each in deviations}
    base = DeviatingGPT2(
        absent=_absent_biases(subject) if "bias-free" in words else frozenset(),
        untied="untied-head" in words,
        padded="padded-vocabulary" in words,
    )
    forms: list[tuple[Replacement, ...]] = [()]
    for each in deviations:
        faults = each.kind.faults if each.kind else ()
        ways = [Replacement(e.operation, e.function) for e in variants() if e.fault in faults]
        if ways and each.what not in ("bias-free", "untied-head", "padded-vocabulary"):
            forms = [(*before, way) for before in forms for way in ways]
    yield from (replace(base, changes=changes) for changes in forms)


class _Formula(nn.Module):
    """The formula with parameters of its own under the published names, and a module for each part that hooks want."""

    def __init__(
        self, size: Size, state: Mapping[str, Tensor], dtype: torch.dtype, forms_with_deviations: DeviatingGPT2
    ) -> None:
        super().__init__()
        self.size, self.names = size, list[str]()
        for name, tensor in state.items():
            if family(name) in forms_with_deviations.absent:
                _put(self, name, torch.zeros_like(tensor, dtype=dtype), trained=False)
            else:
                _put(self, name, tensor.to(dtype, copy=True), trained=True)
                self.names.append(name)
        changed = {change.operation: change.function for change in forms_with_deviations.changes}
        if forms_with_deviations.untied:
            _put(self, HEAD, state["transformer.wte.weight"].to(dtype, copy=True), trained=True)
            self.names.append(HEAD)
            changed["head"] = lambda at, x: x @ at.formula.weights[HEAD].mT
        for operation in PARTS:
            for part in self._parts(operation):
                part.operation = changed.get(operation, OPERATIONS[operation])
            changed[operation] = functools.partial(self._through, operation)
        self.changes = [Replacement(operation, function) for operation, function in changed.items()]

    def forward(self, ids: Tensor) -> Tensor:
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return Formula(self.size, weights, self.changes)(ids)

    def generate(self, prompt: Tensor, *, max_new_tokens: int, **_: Any) -> Tensor:
        """The greedy continuation, called as Hugging Face's is."""
        for _step in range(max_new_tokens):
            prompt = torch.cat((prompt, self(prompt)[:, -1:].argmax(-1)), dim=1)
        return prompt

    def _parts(self, operation: str) -> list[_Part]:
        paths = [PARTS[operation].format(layer) for layer in range(self.size.layers)]
        return [self.get_submodule(path) for path in dict.fromkeys(paths)]  # type: ignore[misc]

    def _through(self, operation: str, at: At, x: Tensor) -> Tensor:
        return self.get_submodule(PARTS[operation].format(at.layer))(x, at)  # type: ignore[no-any-return]


# The operations that have a module of their own in the published model.
PARTS = {
    "block": "transformer.h.{}",
    "ln_1": "transformer.h.{}.ln_1",
    "attn": "transformer.h.{}.attn",
    "ln_2": "transformer.h.{}.ln_2",
    "mlp": "transformer.h.{}.mlp",
    "ln_f": "transformer.ln_f",
}


class _Part(nn.Module):
    """A module of the published model: it holds its weights, and is the operation of that name where it is one."""

    operation: Operation

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.operation(at, x)  # type: ignore[no-any-return]


def _put(module: nn.Module, name: str, tensor: Tensor, *, trained: bool) -> None:
    *path, last = name.split(".")
    for word in path:
        if word not in module._modules:
            module.add_module(word, _Part())
        module = module._modules[word]  # type: ignore[assignment]
    if trained:
        module.register_parameter(last, nn.Parameter(tensor))
    else:
        module.register_buffer(last, tensor)


def _absent_biases(subject: Subject) -> frozenset[str]:
    """Families of biases that the subject has no parameter for."""
    try:
        rows = subject.build(SIZES["debug"]).weights.rows
    except Missing:
        return frozenset()
    there = {family(row.published) for row in rows}
    wanted = {family(name) for name in published_shapes(SIZES["debug"])}
    return frozenset(name for name in wanted - there if name.endswith("bias"))


def _padding(subject: Subject, size: Size) -> int:
    """Rows of the token embedding beyond the vocabulary."""
    shapes = [tuple(p.shape) for p in subject.build(size, device="meta").module.parameters() if p.ndim == 2]
    rows = [shape[0] for shape in shapes if shape[1] == size.width and size.vocab_size < shape[0] < 2 * size.vocab_size]
    return rows[0] - size.vocab_size if rows else 0


def _cut(model: Model) -> Model:
    calling = model.calling

    def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Any]:
        return calling(module, ids, targets)[0][..., : model.size.vocab_size], None

    return replace(model, calling=call)
