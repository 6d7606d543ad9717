"""Measures of weights that are changed: every later answer must be that of the new weights."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.conditions.answers_kept import built
from harness.measures.conditions.sweep import GRADIENTS
from harness.oracle import noise_verdict
from harness.oracle.tokens import batch
from harness.subjects.dropout_calls import WithoutDropout, draws_numbers
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates, Subject
from harness.suites.measure_registry import Reading, measure


@measure
def stale_answers(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return the relative distance of the answers after a change of the weights from those of a new model with them.

    The weights are halved or doubled, which is exact, in every way that weights are changed, and the model is called in
    every mode before and after. 1 is the largest logit. Places are changes; `hint` names the modes that are stale.
    """
    model = built(subject, size)
    ids, targets = batch(SIZES[size], "random", rows=2, length=9, seed=seed)
    training = not draws_numbers(model.module, lambda: model.loss(ids, targets))
    calls = _calls(subject, ids, training)
    expected = [_answers(with_weights(subject, size, model, factor), calls) for factor in (1.0, 0.5)]
    _answers(model, calls)  # whatever is kept from call to call is filled now
    found: dict[str, float] = {}
    stale: list[str] = []
    for number, (name, change) in enumerate(CHANGES.items()):
        halved = number % 2 == 0
        change(model, 0.5 if halved else 2.0)
        gaps = {
            mode: noise_verdict.relative_distance(answer, expected[halved][mode])
            for mode, answer in _answers(model, calls).items()
        }
        found[f"after {name}"] = max(gaps.values(), key=lambda gap: (gap != gap, gap))
        wrong = [mode for mode, gap in gaps.items() if not gap < STALE]
        if wrong and len(wrong) == len(gaps):
            stale.append(f"after {name} every answer is stale")
        elif wrong:
            stale.append(f"after {name} answers are stale: {', '.join(wrong)}")
    return Reading(found, "relative", {"hint": "; ".join(stale[:3])})


STALE = 1e-3  # of the largest logit: rounding is 1e-6, the answers of the old weights are of the order of 1


def _step(model: Model, factor: float) -> None:
    """Make a step of SGD whose result is exact: the gradient is the difference."""
    parameters = [p for p in model.module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.grad = parameter.detach() * (1.0 - factor)
    torch.optim.SGD(parameters, lr=1.0).step()
    model.module.zero_grad(set_to_none=True)


def _load(model: Model, factor: float) -> None:
    parameters = {id(p) for p in model.module.parameters()}
    changed = {
        name: tensor.detach() * factor if id(tensor) in parameters else tensor
        for name, tensor in model.module.state_dict(keep_vars=True).items()
    }
    model.module.load_state_dict(changed)


def _each(change: Callable[[nn.Parameter, float], object]) -> Callable[[Model, float], None]:
    def of_model(model: Model, factor: float) -> None:
        with torch.no_grad():
            for parameter in model.module.parameters():
                change(parameter, factor)

    return of_model


def _to_and_back(model: Model, factor: float) -> None:
    model.module.to(torch.float64)
    _each(lambda p, f: p.mul_(f))(model, factor)
    model.module.to(torch.float32)


def _in_training(model: Model, factor: float) -> None:
    model.module.train()
    _step(model, factor)
    model.module.eval()


# Ways to change every weight by a factor.
CHANGES: Mapping[str, Callable[[Model, float], None]] = {
    "optimizer.step()": _step,
    "load_state_dict": _load,
    "weight.data.mul_()": _each(lambda p, f: p.data.mul_(f)),
    "weight.copy_()": _each(lambda p, f: p.copy_(p * f)),
    "an assignment to weight.data": _each(lambda p, f: setattr(p, "data", p.data * f)),
    ".to(float64), a change and .to(float32)": _to_and_back,
    "weight.mul_() under no_grad": _each(lambda p, f: p.mul_(f)),
    "train(), optimizer.step() and eval()": _in_training,
}

EVAL = "eval, "
Calls = Mapping[str, Callable[[Model], Tensor]]


def _calls(subject: Subject, ids: Tensor, training: bool) -> Calls:
    """Return the ways to call the model, by name."""

    def forward(gradients: str, train: bool) -> Callable[[Model], Tensor]:
        def run(model: Model) -> Tensor:
            if model.module.training != train:  # a model may drop what it keeps when its mode is set
                model.module.train(train)
            with GRADIENTS[gradients](), WithoutDropout() if train else contextlib.nullcontext():
                return model.one_call(ids)[0].detach().clone()

        return run

    found = {f"{EVAL}{gradients}": forward(gradients, False) for gradients in GRADIENTS}
    if training:
        found |= {f"train, {gradients}": forward(gradients, True) for gradients in ("recorded", "no_grad")}
    if isinstance(subject, Caches):
        found["decoding with the cache"] = lambda model: _decoded(subject, model, ids)
    if isinstance(subject, Generates):
        found["generate"] = lambda model: subject.generate(model, ids[:, :4].contiguous(), 4, temperature=0.0).double()
    return found


def _decoded(subject: Caches, model: Model, ids: Tensor) -> Tensor:
    with torch.no_grad():
        cache = subject.new_cache(model, len(ids))
        steps = [
            subject.step(model, ids[:, t : t + n].contiguous(), cache).clone() for t, n in ((0, 3), (3, 1), (4, 1))
        ]
    return torch.cat(steps, dim=1)


def _answers(model: Model, calls: Calls) -> dict[str, Tensor]:
    """Return the answers by mode. The model is in eval mode before and after, and has last answered in it."""
    found = {}
    for name, call in calls.items():
        with contextlib.suppress(MissingAbility):
            found[name] = call(model)
        if model.module.training:
            model.module.eval()
    for name, call in calls.items():
        if name.startswith(EVAL):
            call(model)
    return found


def with_weights(subject: Subject, size: str, model: Model, factor: float) -> Model:
    """Return a new model whose parameters are those of `model` times a factor, written before it is called."""
    new = built(subject, size)
    with torch.no_grad():
        for name, parameter in new.module.named_parameters():
            parameter.copy_(model.module.get_parameter(name) * factor)
    return new
