"""Measures of attention and causality: arms that must agree, a future that must not be seen, rows that must not mix."""

from __future__ import annotations

import functools
import inspect
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import model_cache, noise_verdict
from harness.oracle.probe_weights import State, Weights, state
from harness.oracle.tokens import batch
from harness.subjects.forward_call import unpack
from harness.subjects.model import ChoosesAttention, Model, Subject, build_with_weights
from harness.suites.measure_registry import Reading, measure

PADDING_MASKS = ("attention_mask", "padding_mask")


@measure
def attention_arms(
    subject: ChoosesAttention,
    *,
    size: str,
    attention: str,
    against: str,
    compare: Literal["outputs", "gradients"],
    weights: Weights = "probe",
    rows: int = 2,
    length: int = 24,
) -> Reading:
    """The noise verdict on one way to compute attention against another: every block, the logits, every gradient."""
    comparisons = _arms(subject, size, against, weights, rows, length)
    if attention not in comparisons:
        raise MissingAbility(f"{subject.name} has no attention '{attention}'; it has {', '.join(subject.attentions)}")
    return noise_verdict.reading(getattr(comparisons[attention], compare))


@measure
def future_leak(subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24) -> Reading:
    """How far earlier positions move when later tokens change, by component; 1 is the size of the activations.

    In float64, where rounding is below 1e-12. The first component that moves is where the future gets in.
    """
    model = _float64(subject, size, weights)
    ids, other = batch(SIZES[size], "random", rows=2, length=length)
    leaks: dict[str, float] = {}
    for cut in (1, length // 2, length - 1):
        changed = torch.cat([ids[:, :cut], other[:, cut:]], dim=1)
        before, after = _outputs(model, ids), _outputs(model, changed)
        for place, tensor in before.items():
            leaks[place] = noise_verdict.worst(leaks.get(place, 0.0), _relative(after[place][:, :cut], tensor[:, :cut]))
    return Reading(leaks, "relative")


@measure
def jacobian(
    subject: Subject,
    *,
    size: str,
    half: Literal["future", "past"],
    weights: Weights = "probe",
    length: int = 12,
) -> Reading:
    """The derivative of the logits at each position by the embeddings at others, in float64, relative to the largest.

    'future': the largest by any later position, which must be nothing. 'past': the smallest by any earlier position
    or its own, which must be something.
    """
    model = _float64(subject, size, weights)
    ids, _ = batch(SIZES[size], "random", rows=1, length=length)
    stream = _outputs(model, ids)["embedding"].clone().requires_grad_()
    with model.stream_replaced(stream):
        logits = model.logits(ids)
    mix = torch.randn(SIZES[size].vocab_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sensitivity = torch.stack(
        [
            torch.autograd.grad((logits[0, t] * mix).sum(), stream, retain_graph=True)[0][0].norm(dim=-1)
            for t in range(length)
        ]
    )  # (T of the logits, T of the embeddings)
    relative = sensitivity / sensitivity.max()
    if half == "future":
        found = {f"position {t}": float(relative[t, t + 1 :].max()) for t in range(length - 1)}
    else:
        found = {f"position {t}": float(relative[t, : t + 1].min()) for t in range(length)}
    return Reading(found, "of the largest derivative")


@measure
def rows_mixing(subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24) -> Reading:
    """How far a row's outputs move when the rows beside it in the batch change, by component, in float64."""
    model = _float64(subject, size, weights)
    ids, other = batch(SIZES[size], "random", rows=3, length=length)
    together = _outputs(model, ids)
    alone = _outputs(model, ids[:1])
    beside = _outputs(model, torch.cat([ids[:1], other[1:]]))
    found = {
        place: noise_verdict.worst(_relative(tensor[:1], alone[place]), _relative(tensor[:1], beside[place][:1]))
        for place, tensor in together.items()
    }
    return Reading(found, "relative")


@measure
def prefix_consistency(subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24) -> Reading:
    """How far the outputs of a prefix depend on how long the sequence is that it begins, by component, in float64."""
    model = _float64(subject, size, weights)
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    whole = _outputs(model, ids)
    found: dict[str, float] = {}
    for cut in (1, length // 2, length - 1):
        prefix = _outputs(model, ids[:, :cut])
        for place, tensor in whole.items():
            found[place] = noise_verdict.worst(found.get(place, 0.0), _relative(prefix[place], tensor[:, :cut]))
    return Reading(found, "relative")


@measure
def attention_row_sums(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """Largest distance of an attention row's sum from one, by layer, in float64.

    Seen from outside, whatever the kernel: with values that are one constant vector v at every position and an output
    projection that is the identity, attention answers (sum of the row) · v.
    """
    C = SIZES[size].width
    constant = torch.linspace(1.0, 2.0, C)
    special: State = dict(state(size, "probe"))
    for layer in range(SIZES[size].layers):
        attn = f"transformer.h.{layer}.attn"
        projection, bias = special[f"{attn}.c_attn.weight"].clone(), special[f"{attn}.c_attn.bias"].clone()
        projection[:, 2 * C :], bias[2 * C :] = 0.0, constant
        special |= {f"{attn}.c_attn.weight": projection, f"{attn}.c_attn.bias": bias}
        special |= {f"{attn}.c_proj.weight": torch.eye(C), f"{attn}.c_proj.bias": torch.zeros(C)}
    model = build_with_weights(subject, SIZES[size], special, "float64")
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    answered: dict[str, Tensor] = {}
    attentions = {f"block {layer}": f"transformer.h.{layer}.attn" for layer in range(SIZES[size].layers)}
    with torch.no_grad(), model.watched(attentions, answered=answered):
        model.logits(ids)
    wanted = constant.double().expand(2, length, C)
    sums = {
        place: noise_verdict.distance(tensor / wanted, torch.ones_like(wanted)) for place, tensor in answered.items()
    }
    return Reading(sums, "from one")


@measure
def padding_seen(
    subject: Subject, *, size: str, side: Literal["left", "right"], weights: Weights = "probe", length: int = 16
) -> Reading:
    """How far the logits of tokens move when what is under the padding beside them changes, in float64.

    With padding at the right, how far they are from those of the tokens without any as well. For models whose
    `forward` takes an `attention_mask`, 1 at tokens and 0 at padding, as Hugging Face's does.
    """
    model = _float64(subject, size, weights)
    words = inspect.signature(model.module.forward).parameters
    word = next((name for name in PADDING_MASKS if name in words), None)
    if word is None:
        raise MissingAbility(f"forward of {subject.name} takes no padding mask ({', '.join(PADDING_MASKS)})")
    ids, other = batch(SIZES[size], "random", rows=2, length=length)
    padding = torch.zeros_like(ids, dtype=torch.bool)
    padding[:, -5:] = True
    padding = padding if side == "right" else padding.flip(1)

    def logits(tokens: Tensor, mask: Tensor | None) -> Tensor:
        with torch.no_grad(), model.precision():
            answer: Tensor = unpack(model.module(tokens, **({} if mask is None else {word: mask})))[0]
        return answer

    mask = (~padding).long()
    before, after = logits(ids, mask), logits(torch.where(padding, other, ids), mask)
    tokens = ~padding[0]
    found = {"other padding": _relative(after[:, tokens], before[:, tokens])}
    if side == "right":
        found["no padding"] = _relative(logits(ids[:, tokens], None), before[:, tokens])
    return Reading(found, "relative")


@functools.lru_cache(maxsize=2)
def _arms(
    subject: ChoosesAttention, size: str, against: str, weights: Weights, rows: int, length: int
) -> dict[str, noise_verdict.NoiseComparison]:
    """Every other arm held against one: their reference is run once."""
    ids, targets = batch(SIZES[size], "random", rows=rows, length=length)

    def arm(kind: str, dtype: str) -> Model:
        return build_with_weights(subject, SIZES[size], state(size, weights), dtype, attention=kind)

    truth = noise_verdict.truth(functools.partial(arm, against), ids, targets, backward=True)
    return {
        kind: noise_verdict.compare(functools.partial(arm, kind), truth, ids, targets)
        for kind in subject.attentions
        if kind != against
    }


def _float64(subject: Subject, size: str, weights: Weights) -> Model:
    """One model for neighbouring checks: none of them changes it."""
    return model_cache.cached(
        ("float64", subject, size, weights),
        lambda: build_with_weights(subject, SIZES[size], state(size, weights), "float64"),
    )


def _outputs(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """The residual stream and the logits, by component in execution order."""
    with torch.no_grad(), model.block_outputs() as outputs:
        logits = model.logits(ids)
    return {**outputs, "logits": logits}


def _relative(found: Tensor, expected: Tensor) -> float:
    return noise_verdict.distance(found, expected) / max(noise_verdict.largest(expected), 1e-300)
