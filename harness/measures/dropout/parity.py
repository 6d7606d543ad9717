"""The measure of parity in training mode with dropout on."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from typing import Literal

from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.dropout.recorded_pass import (
    LENGTH,
    ROWS,
    When,
    candidate,
    isolated_random_numbers,
    record,
    reference,
    weights,
)
from harness.oracle import equivalents, noise_verdict
from harness.oracle.replayed_dropout import masks_at_places, replaying
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.random_draws import RandomDraws
from harness.suites.measure_registry import Reading, measure


@measure
def dropout_parity(
    subject: Subject,
    *,
    size: str,
    compare: Literal["logits", "loss", "gradients"],
    when: When = "first",
    rate: float = 0.3,
) -> Reading:
    """Return the noise verdict on the subject with dropout on against GPT-2 with the same masks, at some time.

    The masks are those that the subject draws, at the places where it drops: see `harness.oracle.replayed_dropout`.
    Raises MissingAbility if nothing can be dropped, or if what is drawn is no mask of any value that GPT-2 computes.
    """
    comparison = _comparison(subject, size, rate, when)
    if compare == "gradients":
        return noise_verdict.reading(comparison.gradients)
    return noise_verdict.reading([each for each in comparison.outputs if each.where == compare])


@functools.lru_cache(maxsize=4)
def _comparison(subject: Subject, size: str, rate: float, when: When) -> noise_verdict.NoiseComparison:
    recorded = record(subject, size, rate, when)
    recorded.raise_if_unclear()
    ids, targets = batch(SIZES[size], "random", rows=ROWS, length=LENGTH)
    other: list[float] = []

    drawing = contextlib.ExitStack()

    def build(dtype: str) -> Model:
        drawing.close()  # a model is built without: operations on the meta device would take another way, and long
        model = candidate(subject, size, rate, dtype, when)
        drawing.enter_context(RandomDraws())  # until after the backward pass: a checkpointed block draws again there
        calling = model.calling

        def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
            logits, loss = calling(module, ids, targets)
            if dtype == "float64" and logits.shape[:2] == ids.shape:
                other.append(noise_verdict.distance(logits.detach()[..., : recorded.logits.shape[-1]], recorded.logits))
            return logits, loss

        return dataclasses.replace(model, calling=call)

    with isolated_random_numbers(), replaying(masks_at_places(recorded.masks)):
        run = noise_verdict.run_reference(lambda dtype: reference(size, when, dtype), ids, targets, backward=True)
        with drawing:
            comparison = equivalents.compare_allowing_equivalents(
                build, run, ids, targets, size=SIZES[size], state=weights(size, when)
            )
    if comparison.different and other and other[0] != 0:
        said = "; ".join(dict.fromkeys(map(str, recorded.draws))) or "none that torch draws"
        raise MissingAbility(
            f"{subject.name}: two models with the same weights, after the same seeds, differ in training mode; "
            f"random numbers: {said}"
        )
    return comparison
