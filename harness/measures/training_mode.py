"""Measures of the two modes: what an eval pass changes, training without dropout, and the sites of dropout."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
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

    Compares the loss, and the gradient of every family of weights.
    """
    model = build_with_weights(subject, SIZES[size], state(size, weights), "float64", dropout=0.0)
    ids, targets = batch(SIZES[size], "random", rows=2, length=24)
    losses, gradients = [], []
    for training in (False, True):
        model.module.train(training)
        model.module.zero_grad(set_to_none=True)
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
    nothing is dropped.
    """
    model = subject.build(SIZES[size], dropout=rate)
    ids, _ = batch(SIZES[size], "random", rows=2, length=24)
    model.module.train()
    with _DropoutCounter(heads=SIZES[size].heads) as counter, torch.no_grad():
        model.logits_and_loss(ids, ids)  # one pass: `logits` may need two for a model like nanoGPT
    if not counter.rates:
        raise MissingAbility(f"{subject.name} drops nothing in training mode: it has no dropout, or not torch's")
    sites = {f"rate {found:g}": round(count) for found, count in sorted(counter.rates.items())}
    wanted = 1 + 3 * SIZES[size].layers
    hint = f"{sum(sites.values())} dropouts in a training pass, GPT-2 has {wanted}: {sites}"
    return Reading(round(counter.rates[rate]) - wanted, "dropouts beyond GPT-2's", {"found": sites, "hint": hint})


class _DropoutCounter(TorchFunctionMode):
    """Count the calls inside the block that drop something, by rate; a call for one head, (B, T, T), is 1/heads."""

    def __init__(self, *, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.rates: defaultdict[float, float] = defaultdict(float)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        rate = 0.0
        if function in (torch.nn.functional.dropout, torch.dropout, torch.dropout_):
            names = ("input", "p", "training" if function is torch.nn.functional.dropout else "train")
            bound = {"p": 0.5, "training": True, "train": True, **dict(zip(names, args, strict=False)), **given}
            rate = bound["p"] if bound["training"] and bound["train"] else 0.0
        elif function is torch.nn.functional.scaled_dot_product_attention:
            rate = given.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        elif function is torch.nn.functional.multi_head_attention_forward and given.get("training", True):
            rate = given.get("dropout_p", args[10] if len(args) > 10 else 0.0)
        if rate:
            shape = args[0].shape if args else (given["input"] if "input" in given else given["query"]).shape
            dropout = function is not torch.nn.functional.multi_head_attention_forward
            of_one_head = dropout and len(shape) == 3 and shape[1] == shape[2]
            self.rates[rate] += 1 / self.heads if of_one_head else 1
        return function(*args, **given)
