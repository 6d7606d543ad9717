"""GPT-2 with declared deviations: the oracle for a subject that differs from GPT-2 on purpose."""

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
from harness.oracle.deviations import Deviation
from harness.oracle.formula import OPERATIONS, At, Formula, Operation, Replacement
from harness.oracle.variants import variants
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import MappedWeight, WeightMap, family, published_shapes
from harness.suites.expectations import judge
from harness.suites.measure_registry import Reading
from harness.suites.record import Record

HEAD = "lm_head.weight"


@dataclass(frozen=True)
class DeviatingGPT2:
    """GPT-2 with some deviations.

    Attributes:
        replacements: The operations that are computed differently.
        absent: The families of biases that the model does not have.
        untied: Whether the head has a matrix of its own.
        padded: Whether the vocabulary has more rows than GPT-2's.
    """

    replacements: tuple[Replacement, ...] = ()
    absent: frozenset[str] = frozenset()
    untied: bool = False
    padded: bool = False

    def oracle(self, size: Size, state: Mapping[str, Tensor], dtype: str) -> Model:
        """Return GPT-2 with the deviations and the weights `state` in `dtype`; the same arguments as the oracle's."""
        module = _Formula(size, state, getattr(torch, dtype), self)
        rows = [MappedWeight(name, name) for name in module.names]
        return Model(module.eval(), size, lambda m, ids, targets: (m(ids), None), WeightMap(tuple(rows)))

    def copy_of_subject(self, subject: Subject) -> Subject:
        """Return a copy of the subject, so that results cached without the deviations are not used for it.

        Only the logits of the vocabulary are judged when it is padded.
        """
        copied = copy.copy(subject)
        if self.padded:
            copied.build = lambda *args, **kwargs: _cut(subject.build(*args, **kwargs))  # type: ignore[method-assign]
        return copied

    def judge_again(self, record: Record, subject: Subject) -> Record:
        """Return the record judged without the parameters and weight families that the deviations account for.

        The record is returned unchanged if it does not fail, or still fails.
        """
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
        """Return how many parameters more than GPT-2 the model has, negative if fewer.

        `tied`: whether the GPT-2 that it is compared with has a tied head.
        """
        absent = sum(
            torch.Size(shape).numel() for name, shape in published_shapes(size).items() if family(name) in self.absent
        )
        padding = _padding(subject, size) * size.width if self.padded else 0
        head = size.vocab_size * size.width + padding if self.untied and tied else 0
        return head + padding - absent


def forms_with_deviations(deviations: Sequence[Deviation], subject: Subject) -> Iterator[DeviatingGPT2]:
    """Yield every GPT-2 that the declarations may mean: several if a declared fault has several variants."""
    named = {each.what for each in deviations}
    base = DeviatingGPT2(
        absent=_absent_biases(subject) if "bias-free" in named else frozenset(),
        untied="untied-head" in named,
        padded="padded-vocabulary" in named,
    )
    forms: list[tuple[Replacement, ...]] = [()]
    for each in deviations:
        faults = each.kind.faults if each.kind else ()
        found = [Replacement(v.operation, v.function) for v in variants() if v.fault in faults]
        if found and each.what not in ("bias-free", "untied-head", "padded-vocabulary"):
            forms = [(*others, replacement) for others in forms for replacement in found]
    yield from (replace(base, replacements=replacements) for replacements in forms)


class _Formula(nn.Module):
    """The formula as a module: it has parameters under the published names, and a submodule for each hooked part."""

    def __init__(self, size: Size, state: Mapping[str, Tensor], dtype: torch.dtype, gpt2: DeviatingGPT2) -> None:
        super().__init__()
        self.size, self.names = size, list[str]()
        for name, tensor in state.items():
            if family(name) in gpt2.absent:
                _put(self, name, torch.zeros_like(tensor, dtype=dtype), trained=False)
            else:
                _put(self, name, tensor.to(dtype, copy=True), trained=True)
                self.names.append(name)
        functions = {replacement.operation: replacement.function for replacement in gpt2.replacements}
        if gpt2.untied:
            _put(self, HEAD, state["transformer.wte.weight"].to(dtype, copy=True), trained=True)
            self.names.append(HEAD)
            functions["head"] = lambda at, x: x @ at.formula.weights[HEAD].mT
        for operation in PARTS:
            for part in self._parts(operation):
                part.operation = functions.get(operation, OPERATIONS[operation])
            functions[operation] = functools.partial(self._through_part, operation)
        self.replacements = [Replacement(operation, function) for operation, function in functions.items()]

    def forward(self, ids: Tensor) -> Tensor:
        weights = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        return Formula(self.size, weights, self.replacements)(ids)

    def generate(self, prompt: Tensor, *, max_new_tokens: int, **_: Any) -> Tensor:
        """Return the greedy continuation of `prompt` (B, T) -> (B, T + max_new_tokens); called as Hugging Face's is."""
        for _step in range(max_new_tokens):
            prompt = torch.cat((prompt, self(prompt)[:, -1:].argmax(-1)), dim=1)
        return prompt

    def _parts(self, operation: str) -> list[_Part]:
        """Return the submodules of an operation, one a layer."""
        paths = [PARTS[operation].format(layer) for layer in range(self.size.layers)]
        return [self.get_submodule(path) for path in dict.fromkeys(paths)]  # type: ignore[misc]

    def _through_part(self, operation: str, at: At, x: Tensor) -> Tensor:
        """Apply an operation by calling its submodule, so that the hooks of that submodule run."""
        return self.get_submodule(PARTS[operation].format(at.layer))(x, at)  # type: ignore[no-any-return]


# The submodules of Hugging Face's GPT-2 that are operations of the formula.
PARTS = {
    "block": "transformer.h.{}",
    "ln_1": "transformer.h.{}.ln_1",
    "attn": "transformer.h.{}.attn",
    "ln_2": "transformer.h.{}.ln_2",
    "mlp": "transformer.h.{}.mlp",
    "ln_f": "transformer.ln_f",
}


class _Part(nn.Module):
    """A submodule with the weights of its published name; calling it applies its operation."""

    operation: Operation

    def forward(self, x: Tensor, at: At) -> Tensor:
        return self.operation(at, x)  # type: ignore[no-any-return]


def _put(module: nn.Module, name: str, tensor: Tensor, *, trained: bool) -> None:
    """Register the tensor under its dotted name, as a parameter if `trained`, else as a buffer."""
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
    """Return the families of biases that the subject has no parameter for."""
    try:
        rows = subject.build(SIZES["debug"]).weights.rows
    except Missing:
        return frozenset()
    mapped = {family(row.published) for row in rows}
    published = {family(name) for name in published_shapes(SIZES["debug"])}
    return frozenset(name for name in published - mapped if name.endswith("bias"))


def _padding(subject: Subject, size: Size) -> int:
    """Return the number of rows of the subject's token embedding beyond the vocabulary."""
    shapes = [tuple(p.shape) for p in subject.build(size, device="meta").module.parameters() if p.ndim == 2]
    rows = [shape[0] for shape in shapes if shape[1] == size.width and size.vocab_size < shape[0] < 2 * size.vocab_size]
    return rows[0] - size.vocab_size if rows else 0


def _cut(model: Model) -> Model:
    """Return the model with the logits of the padding left out."""
    calling = model.calling

    def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Any]:
        return calling(module, ids, targets)[0][..., : model.size.vocab_size], None

    return replace(model, calling=call)
