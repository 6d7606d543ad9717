"""GPT-2 with declared deviations: the oracle for a subject that differs from GPT-2 on purpose."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.sizes import SIZES, Size
from harness.oracle.formula import OPERATIONS, At, Formula, Operation, Replacement
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import MappedWeight, WeightMap, family, published_shapes
from harness.suites.expectations import judge
from harness.suites.measure_registry import Reading
from harness.suites.record import Record

HEAD, HEAD_BIAS, GATE_BIAS = "lm_head.weight", "lm_head.bias", "mlp.c_gate.bias"


@dataclass(frozen=True)
class DeviatingGPT2:
    """GPT-2 with some deviations.

    Attributes:
        replacements: The operations that are computed differently.
        absent: The families of GPT-2's parameters that the model does not have.
        has: What the model has beyond GPT-2: keys of `BEYOND_GPT2`.
        subject: The subject whose widths count for what the model has beyond GPT-2.
    """

    replacements: tuple[Replacement, ...] = ()
    absent: frozenset[str] = frozenset()
    has: frozenset[str] = frozenset()
    subject: Subject | None = None

    @property
    def is_gpt2(self) -> bool:
        """True if nothing deviates."""
        return not (self.replacements or self.absent or self.has)

    @functools.cached_property
    def operations(self) -> Mapping[str, Operation]:
        """The operations of the formula that are computed differently."""
        return {replacement.operation: replacement.function for replacement in self.replacements}

    def sized(self, size: Size) -> Size:
        """Return `size` with the subject's own widths where these are declared to be other than GPT-2's."""
        if self.subject is None or not self.has & {"gate", "hidden width", "key-value heads"}:
            return size
        own = own_size(self.subject, size)
        return replace(
            size,
            gated="gate" in self.has,
            hidden=own.hidden if "hidden width" in self.has else 0,
            key_value_heads=own.key_value_heads if "key-value heads" in self.has else 0,
        )

    def shapes(self, size: Size) -> dict[str, tuple[int, ...]]:
        """Return the shape of every parameter by its published name, with those of GPT-2 that are absent."""
        head = {HEAD: (size.vocab_size, size.width)} if "head" in self.has else {}
        bias = {HEAD_BIAS: (size.vocab_size,)} if "head bias" in self.has else {}
        own = published_shapes(self.sized(size))
        if GATE_BIAS in self.absent:
            own = {name: shape for name, shape in own.items() if family(name) != GATE_BIAS}
        return own | head | bias

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
        if "padding" in self.has:
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
            value -= sum(self.excess(size, subject, bool(record.check.parameters.get("tied", True))).values())
        elif record.check.measure == "parameters_by_component":
            excess = self.excess(size, subject)
            value = {key: found - excess.get(key, 0) for key, found in value.items()}
        elif isinstance(value, Mapping):
            value = {key: found for key, found in value.items() if key not in self.absent}
        verdict = judge(Reading(value, record.unit), record.check.expected)
        if not verdict.passed:
            return record
        return replace(record, verdict="pass", message="", value=value, where=(), found=verdict.found)

    def excess(self, size: Size, subject: Subject, tied: bool = True) -> dict[str, int]:
        """Return how many parameters more than GPT-2 the model has, negative if fewer, by family over all layers.

        `tied`: whether the GPT-2 that it is compared with has a tied head.
        """
        found: Counter[str] = Counter()
        head = {} if tied else {HEAD: (size.vocab_size, size.width)}
        for name, shape in (head | self.shapes(size)).items():
            found[family(name)] += 0 if family(name) in self.absent else torch.Size(shape).numel()
        for name, shape in (published_shapes(size) | head).items():
            found[family(name)] -= torch.Size(shape).numel()
        if "padding" in self.has:
            extra = padding(subject, size) * size.width
            found["wte.weight"] += extra
            found[HEAD] += extra if "head" in self.has else 0
        return dict(found)


@functools.lru_cache(maxsize=16)
def own_size(subject: Subject, size: Size) -> Size:
    """Return `size` with the widths that the subject has at it."""
    try:
        return subject.build(size, device="meta").size
    except (NotImplementedError, RuntimeError):
        return subject.build(size).size


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
        functions = dict(gpt2.operations)
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


def padding(subject: Subject, size: Size) -> int:
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
