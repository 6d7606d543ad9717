"""Measures of claims about an untrained model: its first loss, its weights, and its residual stream."""

from __future__ import annotations

import functools
import math
from statistics import fmean

import torch
import torch.nn.functional as F

from harness.core.sizes import SIZES
from harness.measures.initialisation import Recipe, initialised_model
from harness.oracle import closed_forms
from harness.oracle.tokens import batch
from harness.subjects.protocols import ChoosesInit, Subject, Unties
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure

RECIPES: tuple[Recipe, ...] = ("gpt2", "unscaled")


@measure
def uniform_loss(subject: Subject, *, size: str) -> Reading:
    """Return the cross entropy in nats of equal logits over the size's vocabulary."""
    logits = torch.zeros(8, SIZES[size].vocab_size)
    return Reading(float(F.cross_entropy(logits, torch.arange(8))), "nats", {"by": "torch alone"})


@measure
def first_loss(subject: Subject, *, size: str, batches: int = 4, rows: int = 2, length: int = 128) -> Reading:
    """Return the mean loss in nats of an untrained model over batches of random tokens, and the batches' spread."""
    model = initialised_model(subject, size, "gpt2", 0)
    losses = []
    for seed in range(batches):
        ids, targets = batch(SIZES[size], "random", rows=rows, length=length, seed=seed)
        with torch.no_grad():
            losses.append(float(model.loss(ids, targets)))
    spread = {"low": min(losses), "high": max(losses), "over": f"{batches} batches of {rows * length} random tokens"}
    return Reading(fmean(losses), "nats", {"spread": spread, "closed form": closed_forms.initial_loss(SIZES[size])})


@measure
def residual_projection_std(subject: Subject, *, size: str) -> Reading:
    """Return the std of both projections into the residual stream, over all layers of an untrained model."""
    model = initialised_model(subject, size, "gpt2", 0)
    drawn: dict[str, list[torch.Tensor]] = {}
    for name, tensor in model.published_state().items():
        if name.endswith("c_proj.weight"):
            drawn.setdefault(family(name), []).append(tensor.flatten())
    return Reading({name: float(torch.cat(parts).std()) for name, parts in drawn.items()}, "std")


@measure
def effect_of_residual_scaling(subject: ChoosesInit, *, size: str) -> Reading:
    """Return what an untrained model shows of its residual scaling: by its first loss, and by its residual stream.

    The first is the difference of the losses without and with the scaling by 1/sqrt(2L), in sampling errors of a loss;
    the second is the ratio of the stream's std after the last block.
    """
    return _effect_of_residual_scaling(subject, size)


@functools.lru_cache(maxsize=2)  # two claims are about it
def _effect_of_residual_scaling(subject: ChoosesInit, size: str) -> Reading:
    length = min(128, SIZES[size].context)
    ids, targets = batch(SIZES[size], "random", rows=2, length=length)
    losses, stds = {}, {}
    for recipe in RECIPES:  # the scaled one first: the model of an earlier claim
        model = initialised_model(subject, size, recipe, 0)
        with torch.no_grad(), model.block_outputs() as outputs:
            losses[recipe] = float(model.loss(ids, targets))
        stds[recipe] = float(outputs[f"block {SIZES[size].layers - 1}"].std())
    difference = abs(losses["unscaled"] - losses["gpt2"])
    return Reading(
        {
            "first loss": difference / sampling_error(size, tokens=2 * length),
            "residual stream": stds["unscaled"] / stds["gpt2"],
        },
        "",
        {"losses": losses, "stds": stds, "units": {"first loss": "sampling errors", "residual stream": "times"}},
    )


def sampling_error(size: str, *, tokens: int) -> float:
    """Return the standard error of an untrained model's loss over random tokens: s / sqrt(tokens), s² = 0.02²·C."""
    return 0.02 * math.sqrt(SIZES[size].width / tokens)


@measure
def saved_by_tying(subject: Unties, *, size: str) -> Reading:
    """Return how many parameters fewer the model has with a tied head than with an untied one."""
    counts = [
        sum(p.numel() for p in subject.build(SIZES[size], device="meta", tied=tied).module.parameters())
        for tied in (False, True)
    ]
    return Reading(counts[0] - counts[1], "parameters")
