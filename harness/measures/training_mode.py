"""Measures of the two modes: what an eval pass changes, and training without dropout."""

from __future__ import annotations

import torch

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import WithoutDropout, draws_numbers
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
        gap = noise_verdict.relative_distance(gradients[1][name], expected)
        found[family(name)] = noise_verdict.maximum(gap, found.get(family(name), 0.0))
    return Reading(found, "relative")
