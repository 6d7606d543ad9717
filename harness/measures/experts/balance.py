"""Measures of the loss that balances the loads: its value and its gradient against the definitions."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.experts.mixture import layer_of, tokens
from harness.oracle.expert_gates import BALANCE_MISTAKES, balance_terms, z_loss
from harness.subjects.expert_layer import ExpertLayer
from harness.subjects.protocols import MixesExperts
from harness.suites.measure_registry import Reading, measure

# Relative. Right programs are within 1e-15, or 1e-6 if they add an epsilon to a sum; a wrong definition is off by 1e-2.
ALIKE = 1e-4
AS_ITS_VALUE = "as its value says"
BATCHES = 6  # of other loads each: more than the two factors that are fitted


@measure
def balance_definition(subject: MixesExperts, *, size: str, experts: int = 6, per_token: int = 2) -> Reading:
    """Return which definition the balance loss has: of its value, and of its gradient; else "none", and what it is.

    A definition fits if one factor, the weight, explains the losses of batches with different loads. A z-loss may be
    added, with a factor of its own. Raises MissingAbility if the layer has no balance loss that was found.
    """
    layer = layer_of(subject, size, experts=experts, per_token=per_token, own=True)
    k = layer.per_token or per_token
    losses, gradients, logits = _batches(layer)
    definitions: dict[str, Callable[[Tensor], Tensor]] = {
        name: lambda each, name=name: balance_terms(each, k)[name]  # type: ignore[misc]
        for name in balance_terms(logits[0], k)
    }
    mistakes = {f"{said} ({id})": function for id, said, function in BALANCE_MISTAKES}
    fitted = {name: _fit(losses, logits, function) for name, function in definitions.items()}
    value, (left, weight, z_weight) = min(fitted.items(), key=lambda each: each[1][0])
    details = {"weight": weight, "weight of the z-loss": z_weight, "read": layer.description}
    if left > ALIKE:
        others = {name: _fit(losses, logits, lambda each, f=f: f(each, k)) for name, f in mistakes.items()}  # type: ignore[misc]
        named = [name for name, (other, _, _) in others.items() if other < ALIKE]
        said = named[0] if named else f"the closest is {value}, from which it differs by {left:.1%}"
        found = {"its value": f"none: {said}"}
    else:
        gradient = _gradient(layer, gradients, logits, definitions[value], (weight, z_weight))
        found = {"its value": value, "its gradient": gradient}
    hint = "; ".join(f"{place}: {text}" for place, text in found.items() if text.startswith("none"))
    return Reading(found, "", {**details, **({"hint": hint, "line": layer.line} if hint else {})})


def _batches(layer: ExpertLayer) -> tuple[list[float], list[Tensor | None], list[Tensor]]:
    """Return the losses of batches with different loads, the gradients of the router's matrix, and the logits (N, E).

    A number without a gradient may be a count; of a function that is called a balance loss it is the loss. Raises
    MissingAbility if there is no loss, in eval mode or in training mode.
    """
    weight = layer.router_parameters[0]
    start = weight.detach().clone()
    for training, with_gradient in ((False, True), (True, True), (True, False)):
        losses: list[float] = []
        gradients: list[Tensor | None] = []
        logits: list[Tensor] = []
        layer.module.train(training)
        for batch in range(BATCHES):
            with torch.no_grad():  # the more uneven, the later
                weight.copy_(start * (0.4 + 0.4 * batch))
            x = tokens(layer, seed=batch)
            layer(x)
            loss = layer.balance_loss()
            if loss is None or not (loss.requires_grad or (layer.balance is not None and not with_gradient)):
                break
            losses.append(float(loss.detach()))
            gradients.append(torch.autograd.grad(loss, weight, allow_unused=True)[0] if loss.requires_grad else None)
            logits.append(layer.router_logits(x).detach())
        else:
            layer.module.eval()
            return losses, gradients, logits
    layer.module.eval()
    raise MissingAbility(
        f"{type(layer.module).__name__} has no balance loss that was found: a number that its forward returns, or that "
        "it leaves in the module under a name with 'aux' or 'balance', or a function of its routing that is called so"
    )


def _fit(losses: list[float], logits: list[Tensor], function: Callable[[Tensor], Tensor]) -> tuple[float, float, float]:
    """Return what the definition leaves of the losses, relative, with its factor and that of a z-loss."""
    wanted = torch.tensor(losses, dtype=torch.float64)[:, None]
    terms = torch.stack([torch.stack([function(each), z_loss(each)]) for each in logits]).double()  # (batches, 2)
    best = (float("inf"), 0.0, 0.0)
    for columns in (terms[:, :1], terms):
        factors = torch.linalg.lstsq(columns, wanted).solution
        left = float((columns @ factors - wanted).norm() / wanted.norm())
        if left < min(best[0], ALIKE) or best[0] == float("inf"):
            best = (left, float(factors[0]), float(factors[1]) if len(factors) > 1 else 0.0)
        if best[0] < ALIKE:
            break
    return best


def _gradient(
    layer: ExpertLayer,
    gradients: list[Tensor | None],
    logits: list[Tensor],
    function: Callable[[Tensor], Tensor],
    factors: tuple[float, float],
) -> str:
    """Return "as its value says" if the router's gradient is that of the definition, else what it is."""
    errors = []
    for batch, (found, each) in enumerate(zip(gradients, logits, strict=True)):
        own = each.clone().requires_grad_()
        (by_logits,) = torch.autograd.grad(
            factors[0] * function(own) + factors[1] * z_loss(own), own, allow_unused=True
        )
        x = tokens(layer, seed=batch).reshape(-1, layer.width)
        expected = by_logits.t() @ x  # (E, C)
        if found is None or not bool(found.abs().max() > 0):
            return "none: no gradient reaches the router"
        mine = found if found.shape == expected.shape else found.t()
        errors.append(float((mine - expected).norm() / expected.norm()))
    return AS_ITS_VALUE if max(errors) < ALIKE else f"none: it differs from its value's by {max(errors):.1%}"
