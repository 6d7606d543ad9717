"""Does the GPT use tokens that it has yet to predict: as it is, or as it was trained."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.diagnosis.triage.evidence import Evidence, mean_over_windows, undecided
from harness.diagnosis.triage.loading import LoadedSubject
from harness.diagnosis.triage.text_losses import AT_MOST, BY_CHANCE, TextLosses
from harness.oracle.formula import Formula, Replacement
from harness.oracle.noise_verdict import (
    FLOOR_FACTOR_64,
    PRECISION_GAIN,
    Difference,
    distance,
    max_abs,
    relative_distance,
)
from harness.subjects.model import Model
from harness.subjects.weight_map import published_shapes

LEAKS, LOOKED_AHEAD, TRANSPOSED = "sees the future", "looked ahead in training", "transposed weights"
LONGEST = 128  # positions: all that the formula computes is recorded, and at 124M that is 20 MiB a position
SAME_MODEL = 1e-3  # relative; the formula in float32 agrees with a right GPT-2 to 1e-5, and not with other models
# GPT-2's activation and two that people put there: with none of them the formula is another model than the subject.
ACTIVATIONS = [
    Replacement("mlp.activation", lambda at, x: F.gelu(x, approximate="tanh")),
    Replacement("mlp.activation", lambda at, x: F.gelu(x)),
    Replacement("mlp.activation", lambda at, x: F.relu(x)),
]
NOISE = "noise verdict: what float32 rounds the same logits by, scaled to float64"


@torch.no_grad()
def leak(loaded: LoadedSubject, ids: Tensor) -> Evidence:
    """Return the evidence on a missing causal mask: the logits of `ids` (B, T) before tokens that are changed."""
    half = ids.shape[1] // 2
    shuffled = ids.clone()
    shuffled[:, half:] = ids[:, half:].flip(1).add(1) % loaded.size.vocab_size
    found, answers = {}, {}
    for dtype in ("float64", "float32"):
        model = loaded.build(dtype)
        answers[dtype] = model.logits(ids)
        found[dtype] = model.logits(shuffled)[:, :half]
    expected = answers["float64"][:, :half]
    difference = Difference(
        "logits",
        scale=max_abs(expected),
        float32=distance(found["float32"], expected),
        float64=distance(found["float64"], expected),
        floor32=distance(answers["float32"], answers["float64"]),
    )
    wrong = difference.verdict == "different"
    targets = ids[:, 1 : half + 1]
    own, other = (_loss(logits[:, :half], targets) for logits in (answers["float64"], found["float64"]))
    return Evidence(
        LEAKS,
        "wrong" if wrong else "right",
        "its logits change with later tokens: the causal mask is missing or wrong"
        f" (loss {float(own.mean()):.3f} nats with the true later tokens, {float(other.mean()):.3f} with others)"
        if wrong
        else "its logits do not change with later tokens",
        "change of logits with later tokens",
        difference.float64,
        None,
        "",
        rounding(difference),
        NOISE,
    )


@torch.no_grad()
def looked_ahead(model: Model, losses: TextLosses) -> Evidence:
    """Return the evidence on training without the mask: whether GPT-2 with these weights is better without it.

    Better has to be below what any table of the text knows: a little better an honest GPT in training may be, too.
    """
    if model.weight_map is None:
        return undecided(LOOKED_AHEAD, f"no weight map, so no other mask can be tried: {model.weight_map_missing}")
    ids = losses.ids[:, :LONGEST]
    weights = _with_zero_biases(model)
    own_logits = model.logits(ids[:1])
    same = [
        [activation]
        for activation in ACTIVATIONS
        if relative_distance(_formula(model, weights, ids[:1], [activation]), own_logits) < SAME_MODEL
    ]
    if not same:
        return undecided(LOOKED_AHEAD, "the GPT is not GPT-2 in every operation, so no other mask can be tried on it")
    masks = {
        "every later token": lambda at, scores: scores,
        "the next token": lambda at, scores: scores.masked_fill(
            ~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(1), -math.inf
        ),
    }
    own = losses.next_token[:, : ids.shape[1]]
    gains = {}
    for what, mask in masks.items():
        without = _formula_losses(model, weights, losses, [*same[0], Replacement("attn.mask", mask)])
        gains[what] = mean_over_windows(own - without), without
    what, (gain, without) = max(gains.items(), key=lambda item: item[1][0].value)
    wrong = gain.is_above and losses.is_below_tables(without)
    return Evidence(
        LOOKED_AHEAD,
        "wrong" if wrong else "right",
        f"where attention sees {what}, the loss is {float(without.mean()):.3f} nats, and {float(own.mean()):.3f} with "
        "the causal mask: it was trained to look at its answers"
        if wrong
        else "no mask that shows later tokens makes the loss lower",
        "loss with the mask less without",
        gain.value,
        gain.error,
        "nats",
        AT_MOST,
        BY_CHANCE,
    )


@torch.no_grad()
def transposed(model: Model, losses: TextLosses) -> Evidence:
    """Return the evidence on square projections that are transposed: whether the loss is lower with their transposes.

    No shape shows it: attn.c_proj is square, and (in, out) as in a Conv1D loads into (out, in) without an error.
    """
    if model.weight_map is None:
        return undecided(TRANSPOSED, f"no weight map, so no weight can be transposed: {model.weight_map_missing}")
    before = {name: tensor.clone() for name, tensor in model.published_state().items()}
    turned = {name: tensor.T for name, tensor in before.items() if name.endswith("attn.c_proj.weight")}
    ids = losses.ids[:, :LONGEST]
    try:
        model.load({**before, **turned})
        other = torch.cat([_next_losses(model.logits(row[None]), losses, number) for number, row in enumerate(ids)])
    finally:
        model.load(before)
    own = losses.next_token[:, : ids.shape[1]]
    gain = mean_over_windows(own - other)
    wrong = gain.is_above and losses.is_below_single(other)
    return Evidence(
        TRANSPOSED,
        "wrong" if wrong else "right",
        f"the loss is {float(other.mean()):.3f} nats with attn.c_proj transposed, {float(own.mean()):.3f} as it is: "
        "it is (in, out), as in Hugging Face's Conv1D, and square, so that it loads without an error"
        if wrong
        else "attn.c_proj transposed makes the loss no lower",
        "loss less with c_proj transposed",
        gain.value,
        gain.error,
        "nats",
        AT_MOST,
        BY_CHANCE,
    )


def rounding(difference: Difference) -> str:
    """Return up to where a difference in float64 is rounding, as text: what the verdict of `difference` uses."""
    floor32 = max(difference.floor32, difference.scale * torch.finfo(torch.float32).eps / 2)
    return f"at most {FLOOR_FACTOR_64 * floor32 * PRECISION_GAIN:.1e}"


def _with_zero_biases(model: Model) -> dict[str, Tensor]:
    """Return the weights under their published names; biases that the GPT does not have are zeros."""
    found = model.published_state()
    shapes = published_shapes(model.size)
    return {name: torch.zeros(shape) for name, shape in shapes.items() if name.endswith("bias")} | found


def _formula(model: Model, weights: dict[str, Tensor], ids: Tensor, changes: list[Replacement]) -> Tensor:
    return Formula(model.size, weights, changes)(ids)


def _formula_losses(model: Model, weights: dict[str, Tensor], losses: TextLosses, changes: list[Replacement]) -> Tensor:
    rows = losses.ids[:, :LONGEST]
    return torch.cat(
        [_next_losses(_formula(model, weights, row[None], changes), losses, number) for number, row in enumerate(rows)]
    )


def _next_losses(logits: Tensor, losses: TextLosses, window: int) -> Tensor:
    """Return the losses (1, t) of the next tokens of one window, whose logits are (1, t, V)."""
    return _loss(logits, losses.next_ids[window : window + 1, : logits.shape[1]])


def _loss(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.double().mT, targets, reduction="none")  # (B, V, T), (B, T) -> (B, T)
