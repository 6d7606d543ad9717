"""What a loss counts: the weight of each position's cross entropy, solved from the loss's gradient by the logits.

For a weighted sum of cross entropies that gradient is w · (softmax - one-hot) at each position, in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.diagnosis.searches.forward import where
from harness.subjects.model import Model

FITS = 1e-9  # relative
MOST_SHIFTS = 8


@dataclass(frozen=True)
class LossWeights:
    """A loss as a weighted sum: the weights (B, T), the tokens (B, T) that count as targets, and what is left over."""

    weights: Tensor
    tokens: Tensor
    rest: float


def loss_weights(model: Model, ids: Tensor, targets: Tensor) -> LossWeights | None:
    """Return the weights of the model's loss; None if it is no weighted sum of cross entropies of its logits."""
    with torch.enable_grad():
        logits, loss = model.logits_and_loss(ids, targets)
        try:
            (slope,) = torch.autograd.grad(loss, logits)
        except RuntimeError:  # the loss is computed from other logits than those that are returned
            return None
    logits, slope = logits.detach().double(), slope.double()
    chances = logits.softmax(-1)
    tokens = slope.argmin(-1)
    own = chances.gather(-1, tokens[..., None])[..., 0]
    weights = -slope.gather(-1, tokens[..., None])[..., 0] / (1 - own)
    one_hot = torch.nn.functional.one_hot(tokens, logits.shape[-1])
    left = (slope - weights[..., None] * (chances - one_hot)).abs().max()
    if not bool(left <= FITS * slope.abs().max()):
        return None
    sum_of_all = float((weights * -own.log()).sum())
    return LossWeights(weights, tokens, float(loss) - sum_of_all)


def in_words(found: LossWeights, ids: Tensor, targets: Tensor) -> str:
    """Return what a loss is, from its weights; "" if it is the mean over all positions of the targets."""
    counted = found.weights.abs() > FITS * found.weights.abs().max()
    said = [each for each in (_tokens(found, counted, ids, targets), _weights(found, counted, targets)) if each]
    if abs(found.rest) > FITS * max(float(found.weights.abs().sum()), 1.0):
        said.append(f"a term of {found.rest:.6g} is added, which is no cross entropy")
    return "; ".join(said)


def _tokens(found: LossWeights, counted: Tensor, ids: Tensor, targets: Tensor) -> str:
    """Return which tokens the positions are to predict, if these are not the targets."""
    for name, tokens in (("target", targets), ("input", ids)):
        for shift in sorted(range(-MOST_SHIFTS, MOST_SHIFTS + 1), key=abs):
            moved = tokens.roll(-shift, 1)
            if bool((moved == found.tokens)[counted].all()):
                if name == "target" and shift == 0:
                    return ""
                return (
                    f"each position predicts the {name} at {shift:+d}"
                    if shift
                    else f"each position predicts its {name}"
                )
    return f"{float((found.tokens != targets)[counted].double().mean()):.0%} of the positions predict other tokens"


def _weights(found: LossWeights, counted: Tensor, targets: Tensor) -> str:
    """Return which positions count, and how much, if it is not all of them alike."""
    weights, number = found.weights, counted.numel()
    left_out = "" if bool(counted.all()) else where.in_words((~counted)[..., None], targets)
    values = weights[counted]
    alike = bool((values - values.mean()).abs().max() <= FITS * values.abs().max())
    if alike:
        share = float(values.mean())
        if bool(counted.all()) and abs(share * number - 1) <= FITS:
            return ""
        what = f"the loss leaves out {left_out or f'{number - int(counted.sum())} of {number} positions'}"
        if abs(share * int(counted.sum()) - 1) <= FITS:
            return f"{what} and is the mean over the others"
        if abs(share * number - 1) <= FITS:
            return f"{what}, and is still divided by all {number} positions"
        return f"{what + ', and ' if not bool(counted.all()) else ''}each position counts {share:.6g}, not 1/{number}"
    for axis, word in ((0, "position"), (1, "row")):
        if bool((weights - weights.select(axis, 0).unsqueeze(axis)).abs().max() <= FITS * weights.abs().max()):
            one = weights.select(axis, 0) * number
            first = ", ".join(f"{value:.4g}" for value in one[:6].tolist())
            return f"positions count differently, by {word}: {first} ... of 1/{number}"
    other = (weights - weights.median()).abs() > FITS * weights.abs().max()
    if said := where.in_words(other[..., None], targets):
        return f"{said} count {float(weights[other].mean() / weights.median()):.4g} times as much as the others"
    least, most = float(weights.min() * number), float(weights.max() * number)
    return f"positions count differently, from {least:.4g} to {most:.4g} of 1/{number}"
