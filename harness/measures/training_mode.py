"""Measures of the two modes: what an eval pass changes, training without dropout, and the sites of dropout."""

from __future__ import annotations

from collections import defaultdict

import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import DropoutCalls, WithoutDropout, draws_numbers, has_dropout_setting
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure


@measure
def forward_changes(subject: Subject, *, size: str, weights: Weights = "probe", dropout: float = 0.1) -> Reading:
    """Return what a forward pass in eval mode changes but must not: a second answer, the input ids, the state dict."""
    try:
        model = build_with_weights(subject, SIZES[size], state(size, weights), dropout=dropout)
    except MissingAbility:  # no dropout, or no weight map: judged with its own initial weights
        model = subject.build(SIZES[size])
    ids, _ = batch(SIZES[size], "random", rows=2, length=min(24, SIZES[size].context))
    given, before = ids.clone(), {name: t.clone() for name, t in model.module.state_dict().items()}
    with torch.no_grad():
        first, second = model.logits(ids), model.logits(ids)
    after = model.module.state_dict()
    return Reading(
        {
            "the answer, run twice": not torch.equal(first, second),
            "the input ids": not torch.equal(ids, given),
            "the state dict": any(not torch.equal(tensor, after[name]) for name, tensor in before.items()),
            "the training flag": model.module.training,
        }
    )


@measure
def training_against_evaluation(subject: Subject, *, size: str, weights: Weights = "probe") -> Reading:
    """Return the relative distance of training mode without dropout from eval mode, in float64.

    Compares the loss, and the gradient of every family of weights. PyTorch's dropouts are switched off whatever their
    rate. Raises MissingAbility if the model draws other random numbers at a rate of 0.
    """
    model = build_with_weights(subject, SIZES[size], state(size, weights), "float64", dropout=0.0)
    ids, targets = batch(SIZES[size], "random", rows=2, length=24)
    if draws_numbers(model.module, lambda: model.loss(ids, targets)):
        raise MissingAbility(f"{subject.name} draws random numbers in training mode that no dropout rate switches off")
    losses, gradients = [], []
    for training in (False, True):
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)
        with WithoutDropout():
            loss = model.loss(ids, targets)
        loss.backward()
        losses.append(loss.detach())
        gradients.append({name: tensor.clone() for name, tensor in model.gradients().items()})
    found = {"loss": noise_verdict.distance(losses[1], losses[0]) / float(losses[0])}
    for name, expected in gradients[0].items():
        gap = noise_verdict.distance(gradients[1][name], expected) / max(noise_verdict.max_abs(expected), 1e-300)
        found[family(name)] = noise_verdict.maximum(gap, found.get(family(name), 0.0))
    return Reading(found, "relative")


@measure
def dropout_sites(subject: Subject, *, size: str, rate: float = 0.1) -> Reading:
    """Return the number of dropouts of this rate in one training pass, minus GPT-2's 1 + 3 per block.

    GPT-2 drops the sum of the embeddings, the attention weights, and the output of both projections of a block. The
    count is of calls: torch's dropout functions, and the dropout of its fused attention. Raises MissingAbility if
    nothing is dropped, if the rate cannot be set, or if the model drops by other means.
    """
    if not has_dropout_setting(subject):
        raise MissingAbility(f"{subject.name} has no setting for the rate of a dropout")
    counts = _dropouts_by_rate(subject, size, rate)
    sites = {f"rate {found:g}": round(count) for found, count in sorted(counts.items())}
    wanted = 1 + 3 * SIZES[size].layers
    hint = f"{sum(sites.values())} dropouts in a training pass, GPT-2 has {wanted}: {sites}"
    return Reading(round(counts[rate]) - wanted, "dropouts beyond GPT-2's", {"found": sites, "hint": hint})


def _dropouts_by_rate(subject: Subject, size: str, rate: float) -> defaultdict[float, float]:
    """Return the number of dropouts in one training pass by their rate; a call for one head counts as 1/heads.

    Raises MissingAbility if there is none, or if the model also drops by other means than PyTorch's dropout.
    """
    model = subject.build(SIZES[size], dropout=rate)
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    if draws_numbers(model.module, lambda: model.logits(ids)):
        raise MissingAbility(f"{subject.name} drops by other means than torch's dropout, whose calls are counted")
    model.module.train()
    with DropoutCalls() as recorder, torch.no_grad():
        model.logits_and_loss(ids, ids)  # one pass: `logits` may need two for a model like nanoGPT
    if not recorder.calls:
        raise MissingAbility(f"{subject.name} drops nothing in training mode")
    counts: defaultdict[float, float] = defaultdict(float)
    for call in recorder.calls:
        counts[call.rate] += call.share(ids, SIZES[size].heads)
    return counts
