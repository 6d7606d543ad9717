"""fp32 against bf16: what half the bits gain in time and memory, for each kind of work."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from benchmarks import arms
from benchmarks.truth import Closeness, float32_bound, training_bound
from benchmarks.workshop import Workshop
from harness.compare import Comparison, Work, with_twin
from harness.size import Size
from harness.subject import Model
from harness.tokens import batch

# Pure bf16 parameters; and fp32 parameters with the products in bf16, as one trains with it.
ARMS = ("fp32", "bf16", "bf16-autocast")
PROMPT = 16


@pytest.mark.compares(arms=ARMS, axis="tokens", points=(512,), quick=(128,), weight=2)
def test_forward(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    ids = batch(workshop.size, "random", rows=1, length=point)[0].to(workshop.device)

    def work(model: Model, autocast: str | None) -> Work:
        return arms.forward(model, ids, autocast=autocast)

    def truth(stored_in: torch.dtype | None) -> Work:
        return work(workshop.model(dtype="float64", stored_in=stored_in), None)

    compare(_comparison(workshop, "forward", point, work, truth))


@pytest.mark.compares(arms=ARMS, axis="tokens", points=(256,), quick=(64,), weight=4)
def test_training_step(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    ids, targets = (t.to(workshop.device) for t in batch(workshop.size, "random", rows=1, length=point))

    def work(model: Model, autocast: str | None, stored_in: torch.dtype | None = None) -> Work:
        return arms.training_step(workshop, model, ids, targets, autocast=autocast, stored_in=stored_in)

    def truth(stored_in: torch.dtype | None) -> Work:
        return work(workshop.model(dtype="float64"), None, stored_in)

    compare(_comparison(workshop, "training step", point, work, truth, training_bound))


@pytest.mark.compares(arms=ARMS, points=(None,), quick=(None,), weight=1)
def test_decode(workshop: Workshop, compare: Callable[[Comparison], None], point: None) -> None:
    length = min(workshop.size.context, PROMPT + 64)
    ids = batch(workshop.size, "random", rows=1, length=length)[0].to(workshop.device)

    def work(model: Model, autocast: str | None) -> Work:
        return arms.decode(workshop.subject, model, ids, prompt=PROMPT, autocast=autocast)

    def truth(stored_in: torch.dtype | None) -> Work:
        return arms.decoded_at_once(workshop.model(dtype="float64", stored_in=stored_in), ids, prompt=PROMPT)

    compare(_comparison(workshop, "decode", point, work, truth))


def _comparison(
    workshop: Workshop,
    metric: str,
    point: int | None,
    work: Callable[[Model, str | None], Work],
    truth: Callable[[torch.dtype | None], Work],
    bound: Callable[[Size], float] = float32_bound,
) -> Comparison:
    """The arms over one kind of work, held against the same work in float64."""
    return Comparison(
        name="precision",
        title="fp32 against bf16",
        metric=metric,
        axis="tokens" if point else None,
        point=point,
        control="fp32",
        arms=with_twin(
            {
                "fp32": lambda copy: work(workshop.model(copy=copy), None),
                "bf16": lambda copy: work(workshop.model(dtype="bfloat16", copy=copy), None),
                "bf16-autocast": lambda copy: work(workshop.model(copy=copy), "bfloat16"),
            },
            of="fp32",
        ),
        verify=Closeness(
            lambda: truth(None),
            control="fp32",
            bound=bound(workshop.size),
            release=workshop.release_truth,
            coarse=lambda: truth(torch.bfloat16),
            dtypes={"bf16": torch.bfloat16, "bf16-autocast": torch.bfloat16},
        ),
    )
