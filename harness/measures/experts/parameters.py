"""Measures of what a layer of experts has and uses: parameters, and the types that its router computes in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from harness.core.sizes import SIZES
from harness.measures.experts.mixture import layer_of, tokens
from harness.subjects.expert_layer import ExpertLayer, ExpertPart
from harness.subjects.protocols import MixesExperts
from harness.suites.measure_registry import Reading, measure

MANY = 256


@measure
def expert_parameters(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Count the experts that share parameters, that have another number of them, and that no gradient reaches.

    Of many tokens each expert computes some, so that every one of its tensors has a gradient.
    """
    layer = layer_of(subject, size, experts=experts, per_token=per_token, own=True)
    idle = _without_gradient(layer)
    storages = [{(id(part.parameter), part.index) for part in one} for one in layer.expert_parameters]
    sizes = expert_sizes(layer)
    value = {
        "experts that share parameters": sum(
            any(one & other for position, other in enumerate(storages) if position != number)
            for number, one in enumerate(storages)
        ),
        "experts of another size": sum(size != sizes[0] for size in sizes),
        "experts that no gradient reaches": len(idle),
    }
    total, active = total_and_active(layer, layer.per_token or per_token)
    hint = "; ".join(f"{place}: {count} of {layer.experts}" for place, count in value.items() if count)
    answers = {"experts that no gradient reaches": ", ".join(map(str, idle))} if idle else {}
    details = {"total": total, "active": active, "read": layer.description, "answers": answers}
    return Reading(value, "", {**details, **({"hint": hint, "line": layer.line} if hint else {})})


@measure
def parameters_unused_by_a_token(subject: MixesExperts, *, size: str, experts: int = 8, per_token: int = 2) -> Reading:
    """Return the parameters of a layer over those that compute one token."""
    layer = layer_of(subject, size, experts=experts, per_token=per_token)
    total, active = total_and_active(layer, layer.per_token or per_token)
    return Reading(total / active, "", {"total": total, "active": active, "read": layer.description})


def _without_gradient(layer: ExpertLayer) -> list[int]:
    """Return the experts of which a tensor has no gradient, after a pass over MANY tokens."""
    layer.module.zero_grad()
    layer(tokens(layer, rows=1, length=MANY)).square().sum().backward()

    def reached(part: ExpertPart) -> bool:
        gradient = part.parameter.grad
        return gradient is not None and bool(part.of(gradient).abs().max() > 0)

    return [number for number, one in enumerate(layer.expert_parameters) if not all(map(reached, one))]


def expert_sizes(layer: ExpertLayer) -> list[int]:
    """Return the number of parameters of each expert."""
    return [sum(part.of(part.parameter).numel() for part in one) for one in layer.expert_parameters]


def total_and_active(layer: ExpertLayer, k: int) -> tuple[int, int]:
    """Return how many parameters the layer has, and how many of them compute one token."""
    total = sum(parameter.numel() for parameter in layer.module.parameters())
    return total, total - (layer.experts - k) * expert_sizes(layer)[0]


@measure
def router_types(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return the types in which a layer in bfloat16 computes the router's logits, and chooses by them.

    The Switch Transformer computes them in float32 ("selective precision"), since rounded logits tie.
    """
    layer = subject.build_experts(SIZES[size], experts=experts, per_token=per_token, seed=0, dtype="bfloat16")
    x = tokens(layer).bfloat16()
    watch = _RouterTypes(layer.experts)
    with torch.no_grad(), watch:
        layer(x)
    said = f"logits in {_names(watch.products)}, choice in {_names(watch.choices)}"
    return Reading(said, "", {"read": layer.description})


def _names(types: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(one).removeprefix("torch.") for one in types)) or "an unknown type"


class _RouterTypes(TorchDispatchMode):
    """Collect the types of products whose last dimension is the number of experts, and of what is chosen from."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = experts
        self.products: set[torch.dtype] = set()
        self.choices: set[torch.dtype] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        name = function._schema.name.rpartition("::")[2]
        if name in ("mm", "addmm", "bmm", "matmul", "linear") and self._is_of_experts(answer):
            self.products.add(answer.dtype)
        if name in ("topk", "sort", "argsort", "max", "argmax") and args and self._is_of_experts(args[0]):
            self.choices.add(args[0].dtype)
        return answer

    def _is_of_experts(self, value: Any) -> bool:
        return isinstance(value, Tensor) and value.dim() > 1 and value.size(-1) == self.experts
