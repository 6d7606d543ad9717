"""Measures of attention and causality: equal attentions, no leak of the future, independent rows of a batch."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.options.forward_call import logits_with
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import State, Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_arguments import NONE, PADDING
from harness.subjects.forward_style import forward_parameters, style_of
from harness.subjects.model import Model
from harness.subjects.option_names import PADDING_MASKS
from harness.subjects.protocols import ChoosesAttention, Subject
from harness.suites.measure_registry import Reading, measure


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
    """Return the noise verdict on one attention of the subject against another: blocks and logits, or gradients.

    Raises MissingAbility if the subject does not have the attention.
    """
    comparisons = _attentions_compared(subject, size, against, weights, rows, length)
    if attention not in comparisons:
        raise MissingAbility(f"{subject.name} has no attention '{attention}'; it has {', '.join(subject.attentions)}")
    return noise_verdict.reading(getattr(comparisons[attention], compare))


@measure
def future_leak(subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24) -> Reading:
    """Return the relative change of earlier positions when later tokens change, by component, in float64.

    1 is the size of the largest activation, and float64 rounding is below 1e-12. The first component that changes, in
    execution order, is the one that sees the future.
    """
    model = cached_model(subject, size, weights, "float64")
    ids, other = batch(SIZES[size], "random", rows=2, length=length)
    leaks: dict[str, float] = {}
    for cut in (1, length // 2, length - 1):
        changed = torch.cat([ids[:, :cut], other[:, cut:]], dim=1)
        before, after = _outputs(model, ids), _outputs(model, changed)
        for place, tensor in before.items():
            leaks[place] = noise_verdict.maximum(
                leaks.get(place, 0.0), noise_verdict.relative_distance(after[place][:, :cut], tensor[:, :cut])
            )
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
    """Return the derivative of the logits at each position by the embeddings, in float64, relative to the largest.

    "future": the largest derivative by any later position, which must be zero. "past": the smallest derivative by any
    earlier position or the position itself, which must not be zero.
    """
    model = cached_model(subject, size, weights, "float64")
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
    """Return the relative change of a row's outputs when the other rows change, by component, in float64."""
    model = cached_model(subject, size, weights, "float64")
    ids, other = batch(SIZES[size], "random", rows=3, length=length)
    together = _outputs(model, ids)
    alone = _outputs(model, ids[:1])
    beside = _outputs(model, torch.cat([ids[:1], other[1:]]))
    found = {
        place: noise_verdict.maximum(
            noise_verdict.relative_distance(tensor[:1], alone[place]),
            noise_verdict.relative_distance(tensor[:1], beside[place][:1]),
        )
        for place, tensor in together.items()
    }
    return Reading(found, "relative")


@measure
def prefix_consistency(subject: Subject, *, size: str, weights: Weights = "probe", length: int = 24) -> Reading:
    """Return the relative change of a prefix's outputs with the sequence's length, by component, in float64."""
    model = cached_model(subject, size, weights, "float64")
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    whole = _outputs(model, ids)
    found: dict[str, float] = {}
    for cut in (1, length // 2, length - 1):
        prefix = _outputs(model, ids[:, :cut])
        for place, tensor in whole.items():
            found[place] = noise_verdict.maximum(
                found.get(place, 0.0), noise_verdict.relative_distance(prefix[place], tensor[:, :cut])
            )
    return Reading(found, "relative")


@measure
def attention_row_sums(subject: Subject, *, size: str, length: int = 24) -> Reading:
    """Return the largest distance of an attention row's sum from one, by layer, in float64.

    The weights are chosen so that the output shows the sum for any kernel: if every position has the same value v and
    the output projection is the identity, the output of attention is (sum of the row) * v.
    """
    C = SIZES[size].width
    special: State = dict(state(size, "probe"))
    values = (len(special["transformer.h.0.attn.c_attn.bias"]) - C) // 2  # fewer than C where queries share them
    constant = torch.linspace(1.0, 2.0, values)
    for layer in range(SIZES[size].layers):
        attn = f"transformer.h.{layer}.attn"
        projection, bias = special[f"{attn}.c_attn.weight"].clone(), special[f"{attn}.c_attn.bias"].clone()
        projection[:, -values:], bias[-values:] = 0.0, constant
        special |= {f"{attn}.c_attn.weight": projection, f"{attn}.c_attn.bias": bias}
        special |= {f"{attn}.c_proj.weight": torch.eye(C), f"{attn}.c_proj.bias": torch.zeros(C)}
    model = build_with_weights(subject, SIZES[size], special, "float64")
    ids, _ = batch(SIZES[size], "random", rows=2, length=length)
    answered: dict[str, Tensor] = {}
    attentions = {f"block {layer}": f"transformer.h.{layer}.attn" for layer in range(SIZES[size].layers)}
    with torch.no_grad(), model.watched(attentions, answered=answered):
        model.logits(ids)
    by_head = constant.double().unflatten(0, (-1, SIZES[size].head_width))
    wanted = by_head.repeat_interleave(C // values, 0).flatten().expand(2, length, C)
    sums = {
        place: noise_verdict.distance(tensor / wanted, torch.ones_like(wanted)) for place, tensor in answered.items()
    }
    return Reading(sums, "from one")


@measure
def padding_seen(
    subject: Subject, *, size: str, side: Literal["left", "right"], weights: Weights = "probe", length: int = 16
) -> Reading:
    """Return the relative change of the tokens' logits when the ids under the padding change, in float64.

    With padding on the right, also returns their distance from the logits without padding. The mask is 1 at tokens
    and 0 at padding, as in Hugging Face. Raises MissingAbility if `forward` takes no padding mask.
    """
    model = cached_model(subject, size, weights, "float64")
    keyword = next((name for name in PADDING_MASKS if name in forward_parameters(model.module)), None)
    needed = style_of(model.module).arguments.get(keyword or "")
    if keyword is None or (needed is not None and needed not in (NONE, *PADDING)):  # a required mask of another kind
        raise MissingAbility(f"forward of {subject.name} takes no padding mask ({', '.join(PADDING_MASKS)})")
    ids, other = batch(SIZES[size], "random", rows=2, length=length)
    padding = torch.zeros_like(ids, dtype=torch.bool)
    padding[:, -5:] = True
    padding = padding if side == "right" else padding.flip(1)

    def logits(tokens: Tensor, mask: Tensor | None) -> Tensor:
        return logits_with(model, tokens, **({} if mask is None else {keyword: mask}))

    mask = (~padding).long()
    before, after = logits(ids, mask), logits(torch.where(padding, other, ids), mask)
    tokens = ~padding[0]
    found = {"other padding": noise_verdict.relative_distance(after[:, tokens], before[:, tokens])}
    if side == "right":
        found["no padding"] = noise_verdict.relative_distance(logits(ids[:, tokens], None), before[:, tokens])
    return Reading(found, "relative")


@functools.lru_cache(maxsize=2)
def _attentions_compared(
    subject: ChoosesAttention, size: str, against: str, weights: Weights, rows: int, length: int
) -> dict[str, noise_verdict.NoiseComparison]:
    """Return the comparison of every other attention with `against`, which runs only once."""
    ids, targets = batch(SIZES[size], "random", rows=rows, length=length)

    def with_attention(kind: str, dtype: str) -> Model:
        return build_with_weights(subject, SIZES[size], state(size, weights), dtype, attention=kind)

    reference = noise_verdict.run_reference(functools.partial(with_attention, against), ids, targets, backward=True)
    return {
        kind: noise_verdict.compare(functools.partial(with_attention, kind), reference, ids, targets)
        for kind in subject.attentions
        if kind != against
    }


def _outputs(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """Return the residual stream (B, T, C) and the logits (B, T, V), by component in execution order."""
    with torch.no_grad(), model.block_outputs() as outputs:
        logits = model.logits(ids)
    return {**outputs, "logits": logits}
