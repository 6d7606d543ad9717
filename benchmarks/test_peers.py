"""The subject against Hugging Face's GPT-2, eager and SDPA: the same weights, the same work, in one run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from benchmarks import arms
from benchmarks.truth import Closeness, float32_bound, training_bound
from benchmarks.workshop import HuggingFace, Workshop
from harness.compare import Comparison, Work, with_twin
from harness.size import Size
from harness.subject import Model, Subject
from harness.tokens import batch

# SDPA is what transformers chooses by itself, and so the control; the truth is the eager model in float64.
ARMS = ("hf-sdpa", "hf-eager", "subject")
EAGER, SDPA = HuggingFace("eager"), HuggingFace("sdpa")
PROMPT = 16


@pytest.mark.compares(arms=ARMS, axis="tokens", points=(512,), quick=(128,), weight=2)
def test_forward(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    ids = batch(workshop.size, "random", rows=1, length=point)[0].to(workshop.device)

    def work(who: Subject, model: Model) -> Work:
        return arms.forward(model, ids)

    def truth() -> Work:
        return work(EAGER, workshop.model(EAGER, dtype="float64"))

    compare(_comparison(workshop, "forward", point, work, truth))


@pytest.mark.compares(arms=ARMS, axis="tokens", points=(256,), quick=(64,), weight=4)
def test_training_step(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    ids, targets = (t.to(workshop.device) for t in batch(workshop.size, "random", rows=1, length=point))

    def work(who: Subject, model: Model) -> Work:
        return arms.training_step(workshop, model, ids, targets)

    def truth() -> Work:
        return work(EAGER, workshop.model(EAGER, dtype="float64"))

    compare(_comparison(workshop, "training step", point, work, truth, training_bound))


@pytest.mark.compares(arms=ARMS, points=(None,), quick=(None,), weight=1)
def test_decode(workshop: Workshop, compare: Callable[[Comparison], None], point: None) -> None:
    length = min(workshop.size.context, PROMPT + 64)
    ids = batch(workshop.size, "random", rows=1, length=length)[0].to(workshop.device)

    def work(who: Subject, model: Model) -> Work:
        return arms.decode(who, model, ids, prompt=PROMPT)

    def truth() -> Work:
        return arms.decoded_at_once(workshop.model(EAGER, dtype="float64"), ids, prompt=PROMPT)

    compare(_comparison(workshop, "cached decode", point, work, truth))


def _comparison(
    workshop: Workshop,
    metric: str,
    point: int | None,
    work: Callable[[Subject, Model], Work],
    truth: Callable[[], Work],
    bound: Callable[[Size], float] = float32_bound,
) -> Comparison:
    """The subject and its peers over one kind of work."""

    def subject(copy: int) -> Work:
        model = workshop.model(copy=copy)
        assert model.weights is not None  # or MissingAbility: without a weight map it cannot hold the same weights
        return work(workshop.subject, model)

    return Comparison(
        name="peers",
        title="The subject and Hugging Face's GPT-2, fp32",
        metric=metric,
        axis="tokens" if point else None,
        point=point,
        control="hf-sdpa",
        arms=with_twin(
            {
                "hf-sdpa": lambda copy: work(SDPA, workshop.model(SDPA, copy=copy)),
                "hf-eager": lambda copy: work(EAGER, workshop.model(EAGER, copy=copy)),
                "subject": subject,
            },
            of="hf-sdpa",
        ),
        verify=Closeness(truth, control="hf-sdpa", bound=bound(workshop.size), release=workshop.release_truth),
    )
