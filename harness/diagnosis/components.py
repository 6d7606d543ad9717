"""Every component twice: as the subject runs it, and alone, given what GPT-2 gives it (teacher forcing)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from harness.diagnosis.formula import Formula
from harness.subject import Model

PARTS = ("ln_1", "attn", "ln_2", "mlp")


def divergence(model: Model, ids: Tensor, weights: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """How far each component's answer is from GPT-2's, relative to its size, by place in execution order.

    `own`: as the subject runs, errors passed on; `alone`: given GPT-2's own input, so that only what is wrong in the
    component itself shows. Components that have no module of their own are left out.
    """
    formula = Formula(model.size, weights)
    formula(ids)
    inputs = _inputs(formula.taps, model.size.layers)
    modules = dict(_modules(model, inputs))
    own, alone = _answers(model, ids, modules, {}), _answers(model, ids, modules, inputs)
    found: dict[str, dict[str, float]] = {}
    for place in ("embedding", *inputs, "head"):
        expected = formula.taps[place]
        gaps = {
            way: _gap(answers[place], expected) for way, answers in (("own", own), ("alone", alone)) if place in answers
        }
        if place in ("embedding", "head"):
            gaps.pop("alone", None)
        if gaps:
            found[place] = gaps
    return found


def _inputs(taps: Mapping[str, Any], layers: int) -> dict[str, Tensor]:
    """What each component reads in GPT-2, in execution order."""
    inputs: dict[str, Tensor] = {}
    for layer in range(layers):
        h = f"h.{layer}"
        stream = taps["embedding"] if layer == 0 else taps[f"h.{layer - 1}"]
        inputs |= {
            f"{h}.ln_1": stream,
            f"{h}.attn": taps[f"{h}.ln_1"],
            f"{h}.ln_2": taps[f"{h}.residual.attn"],
            f"{h}.mlp": taps[f"{h}.ln_2"],
            h: stream,
        }
    return {**inputs, "ln_f": taps[f"h.{layers - 1}"]}


def _modules(model: Model, inputs: Mapping[str, Tensor]) -> Iterator[tuple[str, nn.Module]]:
    for place in inputs:
        with contextlib.suppress(Exception):  # it has no module of its own
            yield place, model.component(f"transformer.{place}")


def _answers(
    model: Model, ids: Tensor, modules: Mapping[str, nn.Module], inputs: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """What each module answers, given another input where there is one.

    A block is fed once and its parts once more, so blocks are forced in one pass and their parts in another.
    """
    answers: dict[str, Tensor] = {}
    for blocks in (True, False) if inputs else (True,):
        forced = {place: inputs[place] for place in inputs if (place.count(".") == 1) == blocks or place == "ln_f"}
        found: dict[str, Tensor] = {}
        with contextlib.ExitStack() as stack, torch.no_grad():
            for place, module in modules.items():
                stack.enter_context(_hooked(place, module, forced, found))
            found["head"] = model.logits(ids).double()
        answers |= found if not inputs else {place: found[place] for place in forced if place in found}
    return answers


@contextlib.contextmanager
def _hooked(place: str, module: nn.Module, forced: Mapping[str, Tensor], found: dict[str, Tensor]) -> Iterator[None]:
    def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if place == "h.0":
            first = args[0] if args else next((v for v in kwargs.values() if isinstance(v, Tensor)), None)
            if first is not None:
                found.setdefault("embedding", first.detach().double())
        if place not in forced:
            return None
        if args:
            return (forced[place].reshape(args[0].shape), *args[1:]), kwargs
        key = next(key for key, value in kwargs.items() if isinstance(value, Tensor))
        return args, {**kwargs, key: forced[place].reshape(kwargs[key].shape)}

    def after(module: nn.Module, args: Any, output: Any) -> None:
        tensor = output if isinstance(output, Tensor) else output[0]
        found[place] = tensor.detach().double()

    hooks = [
        module.register_forward_pre_hook(before, with_kwargs=True, prepend=True),
        module.register_forward_hook(after),
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gap(found: Tensor, expected: Tensor) -> float:
    if found.numel() != expected.numel():
        return float("nan")
    return float((found.reshape(expected.shape) - expected).abs().max() / expected.abs().max())
