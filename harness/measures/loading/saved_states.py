"""The measure of saved states: a new model that loads one answers as a freshly built model with these weights."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.core.error_text import describe_error
from harness.core.errors import Missing
from harness.core.sizes import SIZES
from harness.measures.conditions.answers_kept import built
from harness.measures.conditions.newest_weights import with_weights
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.oracle import noise_verdict
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

State = dict[str, Tensor]


@measure
def saved_states_differing(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return the relative distance of a model that loads a saved state from a freshly built one, by how it was saved.

    Also returns how far the state that is loaded changes by it, and how far the model changes with the caller's tensors
    after it. Memory that nobody has written is filled with NaN. Where a way to save ends in an error the program
    refuses it, and it is not judged; but torch promises that every module can be saved as a part of another. Nothing is
    pickled: copy.deepcopy, which another check judges, calls the same methods of a module.
    """
    ids, _ = batch(SIZES[size], "random", rows=2, length=9, seed=seed)
    found: dict[str, float | str] = {}
    not_judged: dict[str, str] = {}
    for name, (way, factor, rounded) in WAYS.items():
        model = built(subject, size)
        expected = _with(subject, size, model, factor, rounded)
        try:
            with uninitialised_memory_filled():
                loaded = way(model, lambda: subject.build(SIZES[size], seed=99).module).eval()
                found[name] = noise_verdict.relative_distance(
                    _answer(model, loaded, ids), _answer(model, expected.module, ids)
                )
        except Missing:
            raise
        except Exception as error:
            (found if name in PROMISED else not_judged)[name] = describe_error(error)
    model, other = built(subject, size), subject.build(SIZES[size], seed=99)
    state = {name: tensor.clone() for name, tensor in model.module.state_dict().items()}
    given = {name: tensor.clone() for name, tensor in state.items()}
    other.module.load_state_dict(given)
    found["the state that is loaded, after it"] = functools.reduce(
        noise_verdict.maximum,
        (noise_verdict.relative_distance(given[name].double(), tensor.double()) for name, tensor in state.items()),
        0.0,
    )
    for tensor in given.values():
        tensor.zero_()
    found["the model, after the loaded tensors were changed"] = noise_verdict.relative_distance(
        _answer(model, other.module, ids), _answer(model, model.module, ids)
    )
    return Reading(found, "relative", {"not judged": not_judged})


def _with(subject: Subject, size: str, model: Model, factor: float, rounded: torch.dtype) -> Model:
    """Return a freshly built model with the model's weights times a factor, rounded to a dtype."""
    new = with_weights(subject, size, model, factor)
    with torch.no_grad():
        for parameter in new.module.parameters():
            parameter.copy_(parameter.to(rounded))
    return new


def _file(model: Model, new: Callable[[], nn.Module]) -> nn.Module:
    file = io.BytesIO()
    torch.save(model.module.state_dict(), file)
    file.seek(0)
    return _loaded(new(), torch.load(file, weights_only=True))


def _loaded(module: nn.Module, state: Mapping[str, Tensor]) -> nn.Module:
    module.load_state_dict(dict(state))
    return module


def _half(model: Model, new: Callable[[], nn.Module]) -> nn.Module:
    state = model.module.state_dict()
    return _loaded(new(), {n: t.half() if t.is_floating_point() else t for n, t in state.items()})


def _of_half_model(model: Model, new: Callable[[], nn.Module]) -> nn.Module:
    return _loaded(new(), model.module.half().state_dict())


def _after_a_change(model: Model, new: Callable[[], nn.Module]) -> nn.Module:
    model.module.state_dict()
    with torch.no_grad():
        for parameter in model.module.parameters():
            parameter.mul_(0.5)
    return _loaded(new(), model.module.state_dict())


def _inside_another(model: Model, new: Callable[[], nn.Module]) -> nn.Module:
    module = new()
    nn.ModuleDict({"gpt": module}).load_state_dict(nn.ModuleDict({"gpt": model.module}).state_dict())
    return module


Way = Callable[[Model, Callable[[], nn.Module]], nn.Module]
# Each way to save and load, the factor by which it changes the weights, and the dtype to which it rounds them.
WAYS: Mapping[str, tuple[Way, float, torch.dtype]] = {
    "torch.save and torch.load(weights_only=True)": (_file, 1.0, torch.float32),
    "a state dict of float16": (_half, 1.0, torch.float16),
    "the state dict of the model in float16": (_of_half_model, 1.0, torch.float16),
    "the state dict after a change of the weights": (_after_a_change, 0.5, torch.float32),
    "the state dict of a module that contains the model": (_inside_another, 1.0, torch.float32),
}
PROMISED = ("the state dict of a module that contains the model",)


def _answer(model: Model, module: nn.Module, ids: Tensor) -> Tensor:
    """Return the logits of a module of the model's class, called as the model is."""
    other = Model(module, model.size, model.calling, model.weight_map, model.weight_map_missing)
    with torch.no_grad():
        return other.one_call(ids)[0].detach().clone()
