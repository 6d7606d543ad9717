"""Naive against flash attention over sequence lengths: time, and the exact peak of memory."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
from torch import Tensor

from benchmarks import arms
from benchmarks.truth import Closeness, attention_bound, float32_bound
from benchmarks.workshop import Workshop
from harness.compare import Comparison, Work, with_twin
from harness.size import Size
from harness.tokens import batch

LENGTHS, FEWER = (128, 256, 512, 1024, 2048, 4096), (128, 512, 1024)


@pytest.mark.compares(arms=("naive", "flash"), axis="tokens", points=LENGTHS, quick=FEWER, any_length=True)
def test_forward(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    """The formula and torch's fused kernel by themselves, at the model's heads: what the lessons claim."""

    def work(kind: str, copy: int, dtype: str = "float32") -> Work:
        size = workshop.size
        return arms.attention(
            kind, tokens=point, heads=size.heads, head_width=size.head_width, dtype=dtype, device=workshop.device
        )

    def truth() -> Work:
        return work("head by head", 0, "float64")

    kinds = ("naive", "flash")
    compare(_comparison("forward", point, kinds, work, truth, bound=attention_bound(point)))


@pytest.mark.compares(
    arms=("naive", "looped", "flash"), axis="tokens", points=LENGTHS[:-1], quick=FEWER[:2], any_length=True
)
def test_layer(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    """The subject's own attention, its projections included: one block, built with a context of that length."""
    full = workshop.size
    block = Size(f"one block of {full.name}", 1, point, 1, full.heads, full.width)

    @functools.cache
    def weights() -> dict[str, Tensor]:
        # Each kind of attention draws other weights from the same seed; these go to all of them.
        model = workshop.subject.build(block, seed=0)
        return model.weights.read(dict(model.module.named_parameters()))

    def work(kind: str, copy: int, dtype: str = "float32") -> Work:
        model = workshop.subject.build(block, seed=0, dtype=dtype, device=workshop.device, attention=kind)
        return arms.attention_layer(model.load(weights()))

    def truth() -> Work:
        return work("naive", 0, "float64")

    kinds = ("naive", "looped", "flash")
    compare(_comparison("layer forward", point, kinds, work, truth, bound=float32_bound(block)))


@pytest.mark.compares(arms=("naive", "flash"), axis="tokens", points=(1024,), quick=(128,), weight=3)
def test_model(workshop: Workshop, compare: Callable[[Comparison], None], point: int) -> None:
    """The whole model, of whose work attention is a part."""
    ids = batch(workshop.size, "random", rows=1, length=point)[0].to(workshop.device)

    def work(kind: str, copy: int, dtype: str = "float32") -> Work:
        return arms.forward(workshop.model(dtype=dtype, copy=copy, attention=kind), ids)

    def truth() -> Work:
        return work("naive", 0, "float64")

    kinds = ("naive", "flash")
    bound = float32_bound(workshop.size)
    compare(_comparison("model forward", point, kinds, work, truth, bound=bound, release=workshop.release_truth))


def _comparison(
    metric: str,
    point: int,
    kinds: tuple[str, ...],
    work: Callable[[str, int], Work],
    truth: Callable[[], Work],
    *,
    bound: float,
    release: Callable[[], None] = lambda: None,
) -> Comparison:
    """Kinds of attention doing the same work; `work` takes the kind and the copy's number."""
    return Comparison(
        name="attention",
        title="Attention over sequence lengths",
        metric=metric,
        axis="tokens",
        point=point,
        control="naive",
        arms=with_twin({kind: functools.partial(work, kind) for kind in kinds}, of="naive"),
        verify=Closeness(truth, control="naive", bound=bound, release=release),
    )
