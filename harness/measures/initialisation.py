"""Measures of initialisation: the std of every weight family, the first loss, the growth of the residual stream."""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.sizes import SIZES
from harness.oracle import closed_forms, model_cache
from harness.oracle.declared import declared_gpt2
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state
from harness.oracle.tokens import Tokens, batch
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.weight_map import family
from harness.suites.measure_registry import Reading, measure

Recipe = Literal["gpt2", "unscaled", "pytorch", "kaiming"]
LESSON_STREAM_STD = 0.8  # the lessons feed N(0, 0.8²) directly into the blocks


@measure
def weight_std(subject: Subject, *, size: str, recipe: Recipe = "gpt2", seed: int = 0) -> Reading:
    """Return the std of each family of matrices over the recipe's, in the layer with the largest deviation from 1."""
    ratios: dict[str, float] = {}
    for name, tensor in _weights(initialised_model(subject, size, recipe, seed)).items():
        if tensor.ndim < 2:
            continue
        kind = family(name)
        ratio = float(tensor.std(unbiased=False)) / _expected_std(kind, tensor, recipe, SIZES[size].layers)
        ratios[kind] = max(ratios.get(kind, 1.0), ratio, key=lambda r: abs(r - 1))
    return Reading(ratios, "of the recipe's std")


@measure
def start_of_vectors(subject: Subject, *, size: str) -> Reading:
    """Return the largest distance of each family of vectors from GPT-2's initial values: gains 1, biases 0."""
    distances: dict[str, float] = {}
    for name, tensor in _weights(initialised_model(subject, size, "gpt2", 0)).items():
        if tensor.ndim == 1:
            start = 1.0 if family(name).startswith("ln_") and name.endswith("weight") else 0.0
            distances[family(name)] = max(distances.get(family(name), 0.0), float((tensor - start).abs().max()))
    return Reading(distances)


@measure
def weight_kurtosis(subject: Subject, *, size: str) -> Reading:
    """Return the excess kurtosis of each family of matrices: 0 for a normal distribution, -1.2 for a uniform one.

    Each matrix is standardised first, so that layers of different scale can be pooled.
    """
    drawn: dict[str, list[tuple[float, int]]] = {}  # by family, of each matrix: the sum of fourth powers, and numbers
    for name, tensor in _weights(initialised_model(subject, size, "gpt2", 0)).items():
        if tensor.ndim == 2:
            fourth = _standardised(tensor).square_().square_().sum(dtype=torch.float64)
            drawn.setdefault(family(name), []).append((float(fourth), tensor.numel()))
    found = {kind: sum(s for s, _ in sums) / sum(n for _, n in sums) - 3 for kind, sums in drawn.items()}
    return Reading(found, "excess kurtosis")


@measure
def mean_of_weights(subject: Subject, *, size: str) -> Reading:
    """Return the mean of each family of matrices, in standard errors of the mean, in the layer furthest from 0."""
    found: dict[str, float] = {}
    for name, tensor in _weights(initialised_model(subject, size, "gpt2", 0)).items():
        if tensor.ndim == 2:
            errors = abs(float(tensor.mean())) / max(float(tensor.std()), 1e-300) * tensor.numel() ** 0.5
            found[family(name)] = max(found.get(family(name), 0.0), errors)
    return Reading(found, "standard errors")


@measure
def starts_alike(subject: Subject, *, size: str) -> Reading:
    """Count the pairs of layers, and of heads within a layer, whose initial weights are equal up to scale.

    A pair counts if its correlation is above one half: copies of one prototype, or one seed set before each layer.
    Independent weights have a correlation near 0. Heads are compared in the whole fused projection of queries, keys
    and values.
    """
    started = _weights(initialised_model(subject, size, "gpt2", 0))
    layers: dict[str, list[Tensor]] = {}
    heads = 0
    for name, tensor in started.items():
        if ".h." in name and tensor.ndim == 2:
            layers.setdefault(family(name), []).append(tensor.flatten())
        if name.endswith("attn.c_attn.weight"):
            heads += _correlated(list(tensor.T.unflatten(0, (-1, SIZES[size].head_width)).flatten(1)))
    alike = {kind: _correlated(matrices) for kind, matrices in layers.items()}
    return Reading({**alike, "heads of attn.c_attn.weight": heads}, "pairs")


@measure
def initial_loss(
    subject: Subject, *, size: str, tokens: Tokens, rows: int = 4, length: int = 128, seed: int = 0
) -> Reading:
    """Return the cross entropy with the subject's own initial weights, in nats."""
    ids, targets = batch(SIZES[size], tokens, rows=rows, length=length)
    with torch.no_grad():
        loss = float(initialised_model(subject, size, "gpt2", seed).loss(ids, targets))
    return Reading(loss, "nats", {"closed form": closed_forms.initial_loss(SIZES[size]), "tokens": rows * length})


@measure
def activation_std(
    subject: Subject,
    *,
    size: str,
    stream: Literal["embedding", "normal"],
    recipe: Recipe = "gpt2",
    rows: int = 4,
    length: int = 128,
    seed: int = 0,
) -> Reading:
    """Return the std of the residual stream before the first block and after each, with its mean-field prediction.

    The stream starts from the embeddings of random tokens, or from the lessons' N(0, 0.8²) in their place.
    """
    ids, _ = batch(SIZES[size], "random", rows=rows, length=length, seed=seed)
    normal = stream == "normal"
    found = _stream_std(initialised_model(subject, size, recipe, seed), ids, normal=normal, seed=seed)
    if declared_gpt2() is not None and recipe == "gpt2":
        # No closed form has the declared deviations: another draw of the same initialisation predicts it.
        drawn = oracle(SIZES[size], state(size, "standard"), "float32")
        return Reading(found, "std", {"predicted": _stream_std(drawn, ids, normal=normal, seed=seed)})
    predicted = closed_forms.residual_std(
        SIZES[size], recipe, stream_std=LESSON_STREAM_STD if normal else None, length=length
    )
    return Reading(found, "std", {"predicted": dict(zip(found, predicted, strict=True))})


def _stream_std(model: Model, ids: Tensor, *, normal: bool, seed: int) -> dict[str, float]:
    """Return the std of the residual stream by place; with `normal`, from a normal stream instead of the embeddings."""
    with torch.no_grad(), model.block_outputs() as outputs, contextlib.ExitStack() as stack:
        if normal:
            noise = torch.randn(*ids.shape, model.size.width, generator=torch.Generator().manual_seed(seed))
            stack.enter_context(model.stream_replaced(LESSON_STREAM_STD * noise))
        model.logits(ids)
    return {place: float(tensor.std()) for place, tensor in outputs.items()}


def initialised_model(subject: Subject, size: str, recipe: Recipe, seed: int) -> Model:
    """Build the subject with its own initial weights; only a recipe other than GPT-2's is passed as an option."""
    options: dict[str, Any] = {} if recipe == "gpt2" else {"init": recipe}

    def build() -> Model:
        return subject.build(SIZES[size], seed=seed, **options)

    # A small model takes no time to build, and would take the place of a large one in the cache.
    return build() if size.startswith("debug") else model_cache.cached((subject, size, recipe, seed), build)


def _weights(model: Model) -> dict[str, Tensor]:
    return model.published_state()


def _standardised(tensor: Tensor) -> Tensor:
    """Return the numbers of a tensor, flat, with mean 0 and std 1."""
    numbers = tensor.detach().flatten()
    return (numbers - numbers.mean()) / numbers.std().clamp(min=torch.finfo(numbers.dtype).tiny)


def _correlated(parts: list[Tensor]) -> int:
    """Count the pairs of vectors with a correlation above one half, or with one that is not a number."""
    correlations = torch.stack([_standardised(part) for part in parts]).corrcoef().triu(1).nan_to_num(1.0)
    return int((correlations > 0.5).sum())


def _expected_std(kind: str, tensor: Tensor, recipe: Recipe, layers: int) -> float:
    """Return the std that the recipe gives to a family of matrices."""
    fan_in = tensor.shape[0]  # published orientation: (in, out)
    embedding, linear, residual, _ = closed_forms.recipe_stds(recipe, fan_in=fan_in, layers=layers)
    if kind in ("wte.weight", "wpe.weight", "lm_head.weight"):
        return embedding
    return residual if kind.endswith("c_proj.weight") else linear
