"""Measures of copies: a model that is copied, saved and loaded, moved or converted answers as the first one did."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.core.error_text import describe_error
from harness.core.errors import Missing, MissingAbility
from harness.core.sizes import SIZES
from harness.measures.conditions.answers_kept import built
from harness.measures.conditions.newest_weights import with_weights
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.oracle import noise_verdict
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

Way = Callable[[Subject, str, Model], nn.Module]


@measure
def copies_differing(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return the relative distance of the answers of copies of a model from its own, by how the copy was made.

    The model has been called before, and memory that nobody has written is filled with NaN. Some ways are promised by
    no one: a model on the meta device with buffers that no state dict has is not complete after to_empty(), and a
    program may refuse a state dict of another dtype. Where such a way ends in an error it is not judged.
    """
    model = built(subject, size)
    ids, targets = batch(SIZES[size], "random", rows=2, length=9, seed=seed)
    model.loss(ids, targets).backward()
    model.module.zero_grad(set_to_none=True)
    expected = _answer(model, model.module, ids)
    found: dict[str, float | str] = {}
    not_judged: dict[str, str] = {}
    for name, way in WAYS.items():
        try:
            with uninitialised_memory_filled():
                copied = way(subject, size, model).eval()
                answer = _answer(model, copied, ids)
        except Missing as missing:
            not_judged[name] = str(missing)
            continue
        except Exception as error:
            if name not in PROMISED:
                not_judged[name] = describe_error(error)
                continue
            found[name] = describe_error(error)
            continue
        found[name] = noise_verdict.relative_distance(answer, expected)
        if name == "copy.deepcopy":
            found |= _independent(subject, size, model, ids)
    found["the model itself, after all of this"] = noise_verdict.relative_distance(
        _answer(model, model.module, ids), expected
    )
    return Reading(found, "relative", {"not judged": not_judged})


def _deepcopy(subject: Subject, size: str, model: Model) -> nn.Module:
    return copy.deepcopy(model.module)


def _state_dict(subject: Subject, size: str, model: Model) -> nn.Module:
    return _loaded(_new(subject, size), model.module.state_dict())


def _new(subject: Subject, size: str, device: str = "cpu") -> nn.Module:
    """Return a new module that nobody has called, with other weights."""
    return subject.build(SIZES[size], seed=99, device=device).module


def _loaded(module: nn.Module, state: Mapping[str, Tensor], *, assign: bool = False) -> nn.Module:
    module.load_state_dict(dict(state), assign=assign)
    return module


def _assigned(subject: Subject, size: str, model: Model) -> nn.Module:
    copies = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    return _loaded(_new(subject, size), copies, assign=True)


def _wider(subject: Subject, size: str, model: Model) -> nn.Module:
    state = {n: t.double() if t.is_floating_point() else t for n, t in model.module.state_dict().items()}
    return _loaded(_new(subject, size), state)


def _from_meta(subject: Subject, size: str, model: Model, *, assign: bool) -> nn.Module:
    module = _new(subject, size, "meta")
    state = model.module.state_dict()
    unsaved = [name for name, _ in module.named_buffers() if name not in state]
    if unsaved:
        raise MissingAbility(f"the buffer {unsaved[0]} is in no state dict: after meta nothing gives it its values")
    if not assign:
        module = module.to_empty(device="cpu")
    return _loaded(module, {name: tensor.clone() for name, tensor in state.items()}, assign=assign)


def _empty(subject: Subject, size: str, model: Model) -> nn.Module:
    return _from_meta(subject, size, model, assign=False)


def _assigned_on_meta(subject: Subject, size: str, model: Model) -> nn.Module:
    return _from_meta(subject, size, model, assign=True)


def _there_and_back(subject: Subject, size: str, model: Model) -> nn.Module:
    return copy.deepcopy(model.module).to(torch.float64).to(torch.float32)


def _moved_before(subject: Subject, size: str, model: Model) -> nn.Module:
    return _loaded(_new(subject, size).to(torch.float64).to(torch.float32), model.module.state_dict())


WAYS: Mapping[str, Way] = {
    "copy.deepcopy": _deepcopy,
    "a new model with load_state_dict": _state_dict,
    "a new model with load_state_dict(assign=True)": _assigned,
    "a new model with a state dict in float64": _wider,
    "a copy with .to(float64).to(float32)": _there_and_back,
    "a converted new model with load_state_dict": _moved_before,
    "the meta device, to_empty and load_state_dict": _empty,
    "the meta device and load_state_dict(assign=True)": _assigned_on_meta,
}
# An error is a failure there; elsewhere it is a refusal: torch copies no model that keeps a tensor with its graph.
PROMISED = ("a new model with load_state_dict",)


def _independent(subject: Subject, size: str, model: Model, ids: Tensor) -> dict[str, float | str]:
    """Return how far a deepcopy whose weights are halved is from a new model with these, and the model from before.

    Nobody has called what is copied: what a call makes and a model keeps is judged elsewhere.
    """
    first, halved = with_weights(subject, size, model, 1.0), with_weights(subject, size, model, 0.5)
    copied = copy.deepcopy(first.module)
    with torch.no_grad():
        for parameter in copied.parameters():
            parameter.mul_(0.5)
    expected = _answer(model, model.module, ids)
    return {
        "the deepcopy, after its weights were changed": noise_verdict.relative_distance(
            _answer(first, copied, ids), _answer(halved, halved.module, ids)
        ),
        "the model, after its deepcopy was changed": noise_verdict.relative_distance(
            _answer(first, first.module, ids), expected
        ),
    }


def _answer(model: Model, module: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of a module of the model's class, called as the model is; without and with gradients."""
    other = Model(module, model.size, model.calling, model.weight_map, model.weight_map_missing)
    with torch.no_grad():
        without = other.one_call(ids)[0].detach().clone()
    return torch.stack((without, other.one_call(ids)[0].detach().clone()))
