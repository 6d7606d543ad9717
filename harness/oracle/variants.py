"""Candidate variants: what people write in the place of each of GPT-2's operations, each with its catalogue id."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import EPSILON, OPERATIONS, At, Operation, heads, visible

GELU_SLOPE = math.sqrt(2 / math.pi)


@dataclass(frozen=True)
class Variant:
    """One way in which an operation is got wrong: what it is called, what it says, and what it computes.

    `where` is the place that a reader should look at, when that is not the operation itself. `harmless`: float32 cannot
    tell it from GPT-2's, and it is not told.
    """

    fault: str
    operation: str
    says: str
    function: Operation
    where: str = ""
    harmless: bool = False

    @property
    def component(self) -> str:
        """The component to look at."""
        return self.where or self.operation


@functools.lru_cache(maxsize=1)
def variants() -> tuple[Variant, ...]:
    """Every candidate; among those that fit equally well the first one listed is told."""
    groups = (_embeddings, _norms, _qkv, _scores, _masks, _softmaxes, _mixes, _outputs, _residuals, _mlps, _wirings)
    return tuple(explanation for group in (*groups, _stacks, _heads) for explanation in group())


OF_HEADS = ("attn.split", "attn.scores", "attn.scale", "attn.mask", "attn.softmax", "attn.mix")
POSITIONS = (1, 4, 8, 12, 16, 20, 24, 28)


def in_parts(explanation: Variant, *, heads: int) -> Iterator[Variant]:
    """The explanation in some of the values alone: in one head, in the first position, beyond one, in other rows."""
    operation = explanation.operation
    if operation in OF_HEADS:
        for head in range(heads):
            yield _in_part(explanation, 1, slice(head, head + 1), f"in head {head} alone")
        axis = 2
    elif operation.startswith(("embedding", "ln_", "attn", "mlp", "residual")):
        axis = 1
    else:
        return
    yield _in_part(explanation, axis, slice(0, 1), "at position 0 alone")
    for position in POSITIONS:
        yield _in_part(explanation, axis, slice(position, None), f"from position {position} on")
    yield _in_part(explanation, 0, slice(1, None), "in all rows of the batch but the first")


def _in_part(explanation: Variant, axis: int, part: slice, says: str) -> Variant:
    """What the explanation gives within a slice of one axis, and GPT-2's own elsewhere."""
    right = OPERATIONS[explanation.operation]

    def function(at: At, *inputs: Any) -> Any:
        own, other = right(at, *inputs), explanation.function(at, *inputs)
        if isinstance(own, tuple):
            return tuple(_with_part(a, b, axis, part) for a, b in zip(own, other, strict=True))
        return _with_part(own, other, axis, part)

    return Variant(explanation.fault, explanation.operation, f"{says}: {explanation.says}", function, explanation.where)


def _with_part(own: Tensor, other: Tensor, axis: int, part: slice) -> Tensor:
    if own.ndim == 2 and axis:
        axis -= 1  # the positions' embeddings, (T, C)
    mixed = own.clone()
    index = tuple(part if number == axis else slice(None) for number in range(own.ndim))
    mixed[index] = other.expand_as(own)[index]
    return mixed


def _embeddings() -> Iterator[Variant]:
    def positions(function: Callable[[At, Tensor, Tensor], Tensor]) -> Operation:
        """`function(at, ids, positions)` gives the rows of wpe to read."""
        return lambda at, ids: at["wpe.weight"][
            function(at, ids, torch.arange(at.start, at.start + ids.shape[1])).clamp(0, at.size.context - 1)
        ]

    place = "embedding.position"
    yield Variant("pos-reversed", place, "positions count down instead of up", positions(lambda at, ids, p: p.flip(0)))
    yield Variant(
        "pos-constant", place, "every token gets position 0", positions(lambda at, ids, p: torch.zeros_like(p))
    )
    yield Variant(
        "pos-indexed-by-batch",
        place,
        "the position table is indexed by the row of the batch, not by the time",
        positions(lambda at, ids, p: torch.arange(ids.shape[0])[:, None].expand_as(ids)),
    )
    yield Variant(
        "pos-from-token-ids",
        place,
        "the position table is looked up with the token ids",
        lambda at, ids: at["wpe.weight"][ids % at.size.context],
    )
    yield Variant(
        "pos-from-token-ids",
        place,
        "the position table is looked up with the token ids, clamped",
        lambda at, ids: at["wpe.weight"][ids.clamp(max=at.size.context - 1)],
    )
    for offset in (1, 2, -1):
        yield Variant(
            "pos-from-one" if offset == 1 else "pos-offset",
            place,
            f"positions are shifted by {offset:+d}",
            positions(lambda at, ids, p, offset=offset: p + offset),  # type: ignore[misc]
        )
    for shift in (1, 2, -1, -2):
        yield Variant(
            "load-wpe-shifted",
            place,
            f"the position table is rolled by {shift:+d} rows",
            lambda at, ids, shift=shift: at["wpe.weight"].roll(shift, 0)[at.start : at.start + ids.shape[1]],
        )
    for last in (-2, -3):
        yield Variant(
            "pos-last-clamped",
            place,
            "positions are clamped before the end of the context",
            positions(lambda at, ids, p, last=last: p.clamp(max=at.size.context + last)),  # type: ignore[misc]
        )
    for half in (False, True):
        yield Variant(
            "pos-sinusoidal",
            place,
            "sines and cosines stand in the place of the learned positions",
            lambda at, ids, half=half: _sinusoids(at, ids.shape[1], in_halves=half),
        )
    yield Variant("pos-multiplied", "embedding", "token and position embeddings are multiplied", lambda at, t, p: t * p)
    yield Variant("pos-missing", "embedding", "position embeddings are not added", lambda at, t, p: t)
    yield Variant("token-embedding-missing", "embedding", "token embeddings are not added", lambda at, t, p: p + 0 * t)
    yield Variant("pos-subtracted", "embedding", "position embeddings are subtracted", lambda at, t, p: t - p)
    yield Variant("pos-added-twice", "embedding", "position embeddings are added twice", lambda at, t, p: t + 2 * p)
    yield Variant(
        "embedding-scaled",
        "embedding",
        "token embeddings are multiplied by sqrt(width), as in Vaswani et al., which GPT-2 does not",
        lambda at, t, p: t * math.sqrt(at.size.width) + p,
    )
    yield Variant(
        "embedding-scaled",
        "embedding",
        "the embeddings' sum is multiplied by sqrt(width)",
        lambda at, t, p: (t + p) * math.sqrt(at.size.width),
    )
    for name in ("ln_1", "ln_f"):
        yield Variant(
            "embedding-ln-extra",
            "embedding",
            f"the embeddings go through {name} before the first block",
            lambda at, t, p, name=name: normalised(t + p, *_affine(at if name == "ln_f" else at.at(0), name)),
        )
    yield Variant(
        "embedding-ln-extra",
        "embedding",
        "the embeddings are normalised before the first block",
        lambda at, t, p: F.layer_norm(t + p, t.shape[-1:]),
    )


def _sinusoids(at: At, length: int, *, in_halves: bool) -> Tensor:
    """The fixed positions of Vaswani et al. 2017: sines and cosines alternating, or one half each."""
    C = at.size.width
    steps = torch.arange(at.start, at.start + length, dtype=torch.float64)[:, None]
    angles = steps / 10000 ** (torch.arange(0, C, 2, dtype=torch.float64) / C)
    pairs = torch.stack((angles.sin(), angles.cos()), dim=-1)  # (T, C / 2, 2)
    return pairs.mT.flatten(1) if in_halves else pairs.flatten(1)


def normalised(
    x: Tensor,
    gain: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
    *,
    epsilon: float = EPSILON,
    axes: tuple[int, ...] = (-1,),
    centred: bool = True,
    correction: int = 0,
    outside: bool = False,
) -> Tensor:
    """A LayerNorm with every one of its parts open to question."""
    middle = x.mean(axes, keepdim=True) if centred else torch.zeros_like(x[..., :1])
    variance = x.var(axes, keepdim=True, correction=correction) if centred else x.pow(2).mean(axes, keepdim=True)
    deviation = variance.sqrt() + epsilon if outside else (variance + epsilon).sqrt()
    return (x - middle) / deviation * gain + bias


def _affine(at: At, name: str) -> tuple[Tensor, Tensor]:
    return at[f"{name}.weight"], at[f"{name}.bias"]


def _norms() -> Iterator[Variant]:
    for name in ("ln_1", "ln_2", "ln_f"):
        yield from _norm(name)
    for name, other in (("ln_1", "ln_2"), ("ln_2", "ln_1")):
        fault = "ln-shared-in-block" if name == "ln_2" else "load-ln-swapped"
        yield Variant(
            fault,
            name,
            f"{name} uses the gain and bias of {other}",
            lambda at, x, other=other: normalised(x, *_affine(at, other)),
        )
    for other in ("ln_2", "ln_1"):
        yield Variant(
            "final-ln-reuses-block-ln",
            "ln_f",
            f"the final norm uses the last block's {other}",
            lambda at, x, other=other: normalised(x, *_affine(at.at(at.size.layers - 1), other)),
        )


def _norm(name: str) -> Iterator[Variant]:
    def norm(**settings: Any) -> Operation:
        return lambda at, x: normalised(x, *_affine(at, name), **settings)

    missing = {"ln_1": "ln-missing-before-attention", "ln_2": "ln-missing-before-mlp", "ln_f": "final-ln-missing"}[name]
    yield Variant(missing, name, f"{name} is not applied", lambda at, x: x)
    yield Variant(
        "ln-bias-ignored", name, f"{name}'s bias is not added", lambda at, x: normalised(x, at[f"{name}.weight"])
    )
    yield Variant(
        "ln-gain-ignored",
        name,
        f"{name}'s gain is not applied",
        lambda at, x: normalised(x, 1.0, at[f"{name}.bias"]),
    )
    left = "load-final-ln-left-at-init" if name == "ln_f" else "ln-affine-ignored"
    yield Variant(left, name, f"{name} has neither gain nor bias", lambda at, x: normalised(x))
    yield Variant(
        "ln-gain-plus-one",
        name,
        f"{name} multiplies by 1 + gain",
        lambda at, x: normalised(x, 1 + at[f"{name}.weight"], at[f"{name}.bias"]),
    )
    yield Variant(
        "ln-no-mean-subtraction",
        name,
        f"{name} does not subtract the mean: an RMS norm",
        norm(centred=False),
    )
    yield Variant(
        "ln-no-mean-subtraction",
        name,
        f"{name} divides by the root mean square and adds no bias: an RMS norm",
        lambda at, x: normalised(x, at[f"{name}.weight"], centred=False),
    )
    yield Variant(
        "ln-no-mean-subtraction",
        name,
        f"{name} divides by the standard deviation, but does not subtract the mean",
        lambda at, x: (
            x / (x.var(-1, keepdim=True, correction=0) + EPSILON).sqrt() * at[f"{name}.weight"] + at[f"{name}.bias"]
        ),
    )
    yield Variant(
        "ln-no-variance",
        name,
        f"{name} subtracts the mean, but does not divide by the standard deviation",
        lambda at, x: (x - x.mean(-1, keepdim=True)) * at[f"{name}.weight"] + at[f"{name}.bias"],
    )
    yield Variant(
        "ln-divides-by-variance",
        name,
        f"{name} divides by the variance instead of its root",
        lambda at, x: (
            (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, correction=0) + EPSILON) * at[f"{name}.weight"]
            + at[f"{name}.bias"]
        ),
    )
    for epsilon in (1e-6, 1e-12, 1e-8, 1e-7, 1e-10, 0.0, 1e-4):
        yield Variant("ln-eps-wrong", name, f"{name}'s epsilon is {epsilon:g}, not 1e-5", norm(epsilon=epsilon))
    for epsilon in (1e-3, 1e-2, 0.1, 1.0):
        yield Variant("ln-eps-too-large", name, f"{name}'s epsilon is {epsilon:g}, not 1e-5", norm(epsilon=epsilon))
    for correction in (1, 0):
        for epsilon in (1e-5, 1e-6, 1e-12, 1e-8, 0.0):
            kind = "sample" if correction else "population"
            if correction and epsilon != 1e-5:
                says = f"{name} divides by the unbiased variance (n - 1), with epsilon {epsilon:g}"
                yield Variant("ln-unbiased-var", name, says, norm(correction=1, epsilon=epsilon))
            elif correction:
                says = f"{name} divides by the unbiased variance (n - 1)"
                yield Variant("ln-unbiased-var", name, says, norm(correction=1))
            says = f"{name} adds epsilon {epsilon:g} outside the square root, to the {kind} deviation"
            fault = "ln-unbiased-var" if correction else "ln-eps-outside-sqrt"
            yield Variant(fault, name, says, norm(outside=True, correction=correction, epsilon=epsilon))
    for epsilon in (1e-5, 1e-6, 1e-12):
        yield Variant(
            "ln-eps-outside-sqrt",
            name,
            f"{name} adds epsilon {epsilon:g} after the division",
            lambda at, x, epsilon=epsilon: (
                (normalised(x, epsilon=0.0) + epsilon) * at[f"{name}.weight"] + at[f"{name}.bias"]
            ),
        )
    yield Variant(
        "ln-wrong-axes-leak",
        name,
        f"{name} normalises over time and channels together: statistics of the future leak into the past",
        norm(axes=(-2, -1)),
    )
    yield Variant("ln-wrong-axes-leak", name, f"{name} normalises over time, not over channels", norm(axes=(-2,)))
    yield Variant("ln-wrong-axes-leak", name, f"{name} normalises over the batch", norm(axes=(0,)))
    yield Variant(
        "ln-wrong-axes-leak", name, f"{name} normalises over the batch, time and channels", norm(axes=(0, 1, 2))
    )
    yield Variant(
        "ln-twice",
        name,
        f"{name} is applied twice",
        lambda at, x: normalised(normalised(x, *_affine(at, name)), *_affine(at, name)),
    )
    yield Variant(
        "ln-low-precision",
        name,
        f"{name} is evaluated in bfloat16",
        lambda at, x: F.layer_norm(
            x.bfloat16(), x.shape[-1:], at[f"{name}.weight"].bfloat16(), at[f"{name}.bias"].bfloat16(), EPSILON
        ).to(x.dtype),
    )


def _linear(name: str, bias_missing: str) -> Iterator[Variant]:
    """What goes wrong with any of the four projections of a block."""
    operation = {"attn.c_attn": "attn.qkv"}.get(name, name)
    yield Variant(bias_missing, operation, f"{name}'s bias is not added", lambda at, x: x @ at[f"{name}.weight"])
    yield Variant(
        "bias-added-twice",
        operation,
        f"{name}'s bias is added twice",
        lambda at, x: x @ at[f"{name}.weight"] + 2 * at[f"{name}.bias"],
    )
    for other in range(3):
        yield Variant(
            "layer-weights-mixed",
            operation,
            f"{name} has the weights of layer {other}",
            lambda at, x, other=other: x @ at.at(other)[f"{name}.weight"] + at.at(other)[f"{name}.bias"],
        )


def _qkv() -> Iterator[Variant]:
    yield from _linear("attn.c_attn", "qkv-bias-ignored")
    thirds = {"query": 0, "key": 1, "value": 2}
    for names in (("query",), ("value",), ("query", "key"), ("query", "value"), ("key", "value")):

        def some_biases(at: At, x: Tensor, names: tuple[str, ...] = names) -> Tensor:
            bias = at["attn.c_attn.bias"].clone()
            for name in names:
                bias.unflatten(0, (3, -1))[thirds[name]] = 0
            return x @ at["attn.c_attn.weight"] + bias

        says = f"the bias of the {' and the '.join(names)} is not added"
        yield Variant("qkv-bias-ignored", "attn.qkv", says, some_biases)
    for name, third in thirds.items():

        def transposed(at: At, x: Tensor, third: int = third) -> Tensor:
            weight = at["attn.c_attn.weight"].clone()
            C = at.size.width
            weight[:, third * C : third * C + C] = weight[:, third * C : third * C + C].mT.clone()
            return x @ weight + at["attn.c_attn.bias"]

        yield Variant(
            "load-conv1d-square-not-transposed", "attn.qkv", f"the {name} projection is transposed", transposed
        )

    def all_transposed(at: At, x: Tensor) -> Tensor:
        blocks: Tensor = at["attn.c_attn.weight"].unflatten(1, (3, -1))  # (in, 3, out)
        return x @ blocks.permute(2, 1, 0).flatten(1) + at["attn.c_attn.bias"]

    yield Variant(
        "load-conv1d-square-not-transposed", "attn.qkv", "query, key and value are transposed", all_transposed
    )
    yield Variant(
        "load-conv1d-square-not-transposed",
        "attn.qkv",
        "the fused projection is reshaped where it should be transposed",
        lambda at, x: x @ at["attn.c_attn.weight"].reshape(-1, at.size.width).mT + at["attn.c_attn.bias"],
    )
    words = "qkv"
    for order in ((1, 0, 2), (2, 1, 0), (0, 2, 1), (1, 2, 0), (2, 0, 1)):

        def permuted(at: At, qkv: Tensor, order: tuple[int, ...] = order) -> tuple[Tensor, ...]:
            parts = qkv.chunk(3, dim=-1)
            found: dict[int, Tensor] = {third: heads(at, parts[index]) for index, third in enumerate(order)}
            return found[0], found[1], found[2]

        read = ", ".join(words[third] for third in order)
        yield Variant(
            "qkv-order-swapped-code",
            "attn.split",
            f"the fused projection is read as {read}; GPT-2's checkpoint is q, k, v",
            permuted,
        )

    def interleaved(at: At, qkv: Tensor) -> tuple[Tensor, ...]:
        parts = qkv.unflatten(-1, (at.size.heads, 3, at.size.head_width))  # (B, T, H, 3, D)
        return tuple(parts.transpose(1, 2).unbind(3))

    def by_channel(at: At, qkv: Tensor) -> tuple[Tensor, ...]:
        return tuple(heads(at, part) for part in qkv.unflatten(-1, (at.size.width, 3)).unbind(-1))

    def by_head_channel(at: At, qkv: Tensor) -> tuple[Tensor, ...]:
        return tuple(qkv.unflatten(-1, (at.size.heads, at.size.head_width, 3)).transpose(1, 2).unbind(-1))

    says = "the fused projection is read as [q, k, v] for each head; GPT-2's checkpoint has all q, all k, all v"
    yield Variant("qkv-interleaved-per-head", "attn.split", says, interleaved)
    says = "the fused projection is read as q, k, v alternating by channel"
    yield Variant("qkv-interleaved-per-head", "attn.split", says, by_channel)
    yield Variant("qkv-interleaved-per-head", "attn.split", says, by_head_channel)

    def each(function: Operation) -> Operation:
        return lambda at, qkv: tuple(function(at, part) for part in qkv.chunk(3, dim=-1))

    def viewed(at: At, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], at.size.heads, x.shape[1], at.size.head_width)

    def strided(at: At, x: Tensor) -> Tensor:
        apart: Tensor = x.unflatten(-1, (at.size.head_width, at.size.heads))
        return apart.permute(0, 3, 1, 2)

    yield Variant(
        "head-split-view-no-transpose",
        "attn.split",
        "heads are split by a view to (B, H, T, D) without a transpose: positions and features mix",
        each(viewed),
    )
    for which, parts in (("queries", "q"), ("keys", "k"), ("values", "v")):

        def some_viewed(at: At, qkv: Tensor, parts: str = parts) -> tuple[Tensor, ...]:
            return tuple(
                viewed(at, part) if word in parts else heads(at, part)
                for word, part in zip("qkv", qkv.chunk(3, dim=-1), strict=True)
            )

        yield Variant(
            "head-split-view-no-transpose",
            "attn.split",
            f"the {which} are split into heads by a view without a transpose",
            some_viewed,
        )
    yield Variant(
        "head-split-wrong-factor",
        "attn.split",
        "channels are split as (D, H) instead of (H, D): heads are strided",
        each(strided),
    )

    def of_heads(function: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Operation:
        return lambda at, qkv: function(*OPERATIONS["attn.split"](at, qkv))

    yield Variant(
        "heads-share-keys",
        "attn.split",
        "every head uses the keys of head 0",
        of_heads(lambda q, k, v: (q, k[:, :1].expand_as(k), v)),
    )
    yield Variant(
        "heads-share-values",
        "attn.split",
        "every head uses the values of head 0",
        of_heads(lambda q, k, v: (q, k, v[:, :1].expand_as(v))),
    )
    yield Variant(
        "heads-share-keys",
        "attn.split",
        "every head uses the keys and values of head 0 (multi-query)",
        of_heads(lambda q, k, v: (q, k[:, :1].expand_as(k), v[:, :1].expand_as(v))),
    )
    yield Variant(
        "heads-share-queries",
        "attn.split",
        "every head uses the queries of head 0",
        of_heads(lambda q, k, v: (q[:, :1].expand_as(q), k, v)),
    )
    for fault, says, function in (
        ("key-is-query", "the keys are the queries", lambda q, k, v: (q, q, v)),
        ("query-is-key", "the queries are the keys", lambda q, k, v: (k, k, v)),
        ("value-is-key", "the values are the keys", lambda q, k, v: (q, k, k)),
        ("value-is-query", "the values are the queries", lambda q, k, v: (q, k, q)),
        ("query-is-value", "the queries are the values", lambda q, k, v: (v, k, v)),
        ("key-is-value", "the keys are the values", lambda q, k, v: (q, v, v)),
    ):
        yield Variant(fault, "attn.split", says, of_heads(function), where="attn.qkv")
    yield Variant(
        "qk-normalised",
        "attn.split",
        "queries and keys are normalised",
        of_heads(lambda q, k, v: (F.normalize(q, dim=-1), F.normalize(k, dim=-1), v)),
    )


def _scores() -> Iterator[Variant]:
    yield Variant("scores-transposed", "attn.scores", "the scores are K Qᵀ instead of Q Kᵀ", lambda at, q, k: k @ q.mT)
    yield Variant("scores-negated", "attn.scores", "the scores have the wrong sign", lambda at, q, k: -(q @ k.mT))
    yield Variant(
        "scores-by-distance",
        "attn.scores",
        "the scores are distances, not products",
        lambda at, q, k: -torch.cdist(q, k).pow(2),
    )
    D, H, C = (lambda s: s.head_width), (lambda s: s.heads), (lambda s: s.width)
    table: list[tuple[str, str, Callable[[Any], float]]] = [
        ("scale-missing", "the scores are not divided by sqrt(head size)", lambda s: 1.0),
        ("scale-by-n-head", "the scores are divided by sqrt(number of heads)", lambda s: H(s) ** -0.5),
        ("scale-by-d-model", "the scores are divided by sqrt(width), not by sqrt(head size)", lambda s: C(s) ** -0.5),
        ("scale-inverted", "the scores are multiplied by sqrt(head size)", lambda s: D(s) ** 0.5),
        (
            "scale-without-root",
            "the scores are divided by the head size: its root is missing, or taken twice",
            lambda s: 1 / D(s),
        ),
        ("scale-by-n-head", "the scores are divided by the number of heads", lambda s: 1 / H(s)),
        ("scale-by-d-model", "the scores are divided by the width", lambda s: 1 / C(s)),
        ("scale-half", "only one of queries and keys is scaled by a fourth root", lambda s: D(s) ** -0.25),
        ("scale-by-d-model", "the scores are divided by sqrt(3 · width)", lambda s: (3 * C(s)) ** -0.5),
        ("scale-by-context", "the scores are divided by sqrt(context)", lambda s: s.context**-0.5),
        ("scale-by-constant", "the scores are divided by 8, right for a head size of 64 only", lambda s: 1 / 8),
    ]
    for fault, says, factor in table:
        yield Variant(fault, "attn.scale", says, lambda at, scores, factor=factor: scores * factor(at.size))
    yield Variant(
        "scale-by-context",
        "attn.scale",
        "the scores are divided by sqrt(number of tokens)",
        lambda at, scores: scores / math.sqrt(scores.shape[-1]),
    )
    yield Variant(
        "scale-by-layer",
        "attn.scale",
        "the scores are divided by the layer's number as well (scale_attn_by_inverse_layer_idx)",
        lambda at, scores: scores / math.sqrt(at.size.head_width) / (at.layer + 1),
    )
    for bound in (10.0, 20.0, 30.0, 50.0, 5.0):
        yield Variant(
            "scores-clamped",
            "attn.scale",
            f"the scores are clamped to ±{bound:g}",
            lambda at, scores, bound=bound: (scores / math.sqrt(at.size.head_width)).clamp(-bound, bound),
        )
        yield Variant(
            "scores-soft-capped",
            "attn.scale",
            f"the scores are soft-capped at {bound:g}",
            lambda at, scores, bound=bound: bound * (scores / math.sqrt(at.size.head_width) / bound).tanh(),
        )


def _masks() -> Iterator[Variant]:
    def fill(allowed: Callable[[int, int], Tensor], value: float = -math.inf) -> Operation:
        return lambda at, scores: scores.masked_fill(~allowed(*scores.shape[-2:]), value)

    def shifted(by: int) -> Callable[[int, int], Tensor]:
        return lambda T, S: torch.ones(T, S, dtype=torch.bool).tril(S - T + by)

    yield Variant("mask-missing", "attn.mask", "there is no causal mask", lambda at, scores: scores)
    yield Variant("mask-allows-next", "attn.mask", "the mask lets every position see the next one", fill(shifted(1)))
    yield Variant("mask-allows-next", "attn.mask", "the mask lets every position see two ahead", fill(shifted(2)))
    yield Variant(
        "attention-to-others-only",
        "attn.mask",
        "the mask hides every position from itself",
        fill(_but_first(shifted(-1))),
    )
    for value in (-math.inf, -1e9, -1e10, torch.finfo(torch.float32).min, torch.finfo(torch.float64).min):
        yield Variant(
            "attention-to-others-only",
            "attn.mask",
            "the mask hides every position from itself",
            fill(shifted(-1), value),
        )
    yield Variant(
        "mask-transposed",
        "attn.mask",
        "the mask is upside down: every position sees only itself and the future",
        fill(lambda T, S: torch.ones(T, S, dtype=torch.bool).triu()),
    )
    yield Variant(
        "mask-inverted",
        "attn.mask",
        "the mask is inverted: it hides the past and shows the future",
        fill(lambda T, S: torch.ones(T, S, dtype=torch.bool).triu(1)),
    )
    for value, fault in (
        (0.0, "mask-fill-zero"),
        (1e-9, "mask-fill-sign-of-exponent"),
        (1e-10, "mask-fill-sign-of-exponent"),
        (-1.0, "mask-fill-too-small"),
        (-10.0, "mask-fill-too-small"),
        (-20.0, "mask-fill-too-small"),
        (-50.0, "mask-fill-too-small"),
        (-100.0, "mask-fill-too-small"),
    ):
        yield Variant(fault, "attn.mask", f"masked scores are filled with {value:g}", fill(visible, value))
        if value in (0.0, 1e-9, 1e-10, -100.0):
            continue  # nothing added is no mask, and 100 taken off is enough of one
        yield Variant(
            fault,
            "attn.mask",
            f"masked scores have {value:g} added",
            lambda at, s, value=value: s + value * (~visible(*s.shape[-2:])).to(s.dtype),
        )
    yield Variant(
        "mask-fill-zero",
        "attn.mask",
        "scores are multiplied by the mask: masked ones are 0, and keep their weight",
        lambda at, s: s * visible(*s.shape[-2:]),
    )
    for offset in (0, 1):
        yield Variant(
            "mask-added-as-ones",
            "attn.mask",
            "a mask of ones and zeros is added to the scores",
            lambda at, s, offset=offset: s + (visible(*s.shape[-2:]) ^ bool(offset)).to(s.dtype),
        )
    yield Variant(
        "mask-block-of-context",
        "attn.mask",
        "the first position is hidden",
        lambda at, s: s.masked_fill(~_without_first(*s.shape[-2:]), -math.inf),
    )
    yield Variant(
        "attention-to-self-only",
        "attn.mask",
        "every position sees itself alone",
        fill(lambda T, S: torch.eye(T, S, dtype=torch.bool)),
    )
    for row in (4, 8, 10, 12, 16, 20, 24, 28, 30):
        yield Variant(
            "mask-ends-early",
            "attn.mask",
            f"from position {row} on there is no mask",
            fill(lambda T, S, row=row: visible(T, S) | (torch.arange(T)[:, None] >= row)),  # type: ignore[misc]
        )
    for window in (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20):
        yield Variant(
            "mask-window-not-respected",
            "attn.mask",
            f"every position sees only the last {window} positions",
            fill(lambda T, S, window=window: visible(T, S).triu(S - T - window + 1)),  # type: ignore[misc]
        )

    def after(renormalise: bool) -> Operation:
        def function(at: At, weights: Tensor, v: Tensor) -> Tensor:
            scores: Tensor = at.formula.taps[f"h.{at.layer}.attn.scale"]
            kept = scores.softmax(-1) * visible(*scores.shape[-2:])
            return (kept / kept.sum(-1, keepdim=True) if renormalise else kept) @ v

        return function

    says = "the mask multiplies the probabilities after the softmax: rows do not sum to 1"
    yield Variant("mask-after-softmax", "attn.mix", says, after(False), where="attn.mask")


def _but_first(mask: Callable[[int, int], Tensor]) -> Callable[[int, int], Tensor]:
    def function(T: int, S: int) -> Tensor:
        allowed = mask(T, S).clone()
        allowed[0, 0] = True
        return allowed

    return function


def _without_first(T: int, S: int) -> Tensor:
    allowed = visible(T, S).clone()
    allowed[1:, 0] = False
    return allowed


def _softmaxes() -> Iterator[Variant]:
    op = "attn.softmax"
    yield Variant(
        "softmax-over-queries",
        op,
        "the softmax is over the queries, not over the keys",
        lambda at, s: s.softmax(-2),
    )
    yield Variant("softmax-over-queries", op, "the softmax is over the heads", lambda at, s: s.softmax(1))
    yield Variant("softmax-over-queries", op, "the softmax is over the batch", lambda at, s: s.softmax(0))
    yield Variant(
        "softmax-missing", op, "the scores are used without a softmax", lambda at, s: s.masked_fill(s.isinf(), 0.0)
    )
    yield Variant("softmax-is-sigmoid", op, "a sigmoid stands in the place of the softmax", lambda at, s: s.sigmoid())
    yield Variant(
        "softmax-off-by-one",
        op,
        "the softmax has 1 added to its denominator",
        lambda at, s: F.pad(s, (0, 1)).softmax(-1)[..., :-1],
    )
    yield Variant("softmax-twice", op, "the softmax is applied twice", lambda at, s: s.softmax(-1).softmax(-1))
    yield Variant(
        "softmax-twice",
        op,
        "the softmax is applied, masked, and applied again",
        lambda at, s: s.softmax(-1).masked_fill(s.isinf(), -math.inf).softmax(-1),
    )
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")
        yield Variant(
            "softmax-low-precision",
            op,
            f"the softmax is evaluated in {name}",
            lambda at, s, dtype=dtype: s.to(dtype).softmax(-1).to(s.dtype),
        )
        yield Variant(
            "softmax-low-precision",
            op,
            f"the attention weights are rounded to {name}",
            lambda at, s, dtype=dtype: s.softmax(-1).to(dtype).to(s.dtype),
        )
        yield Variant(
            "softmax-low-precision",
            op,
            f"the scores are rounded to {name}",
            lambda at, s, dtype=dtype: s.to(dtype).to(s.dtype).softmax(-1),
        )


def _mixes() -> Iterator[Variant]:
    yield Variant(
        "mix-transposed",
        "attn.mix",
        "the values are mixed with the attention weights transposed",
        lambda at, w, v: w.mT @ v,
    )
    for number, says in ((-1, "last"), (0, "first")):

        def dropped(at: At, w: Tensor, v: Tensor, number: int = number) -> Tensor:
            mixed = w @ v
            return mixed.index_fill(1, torch.tensor([number % mixed.shape[1]]), 0.0)

        yield Variant("head-dropped", "attn.mix", f"the {says} head's answer is dropped", dropped)
    yield Variant("mix-missing", "attn.mix", "the values are not mixed by the attention weights", lambda at, w, v: v)
    yield Variant(
        "head-merge-no-transpose",
        "attn.merge",
        "heads are merged by a reshape without a transpose: tokens receive features of other positions",
        lambda at, m: m.reshape(m.shape[0], m.shape[2], -1),
    )
    yield Variant(
        "head-merge-wrong-factor",
        "attn.merge",
        "heads are merged as (D, H) instead of (H, D)",
        lambda at, m: m.permute(0, 2, 3, 1).flatten(2),
    )
    yield Variant(
        "head-merge-wrong-factor",
        "attn.merge",
        "heads are merged in reverse",
        lambda at, m: m.flip(1).transpose(1, 2).flatten(2),
    )
    yield Variant(
        "head-merge-no-transpose",
        "attn.merge",
        "heads are merged from (B, D, T, H)",
        lambda at, m: m.transpose(1, 3).reshape(m.shape[0], m.shape[2], -1),
    )
    yield Variant(
        "head-merge-no-transpose",
        "attn.merge",
        "heads are merged after the wrong transpose",
        lambda at, m: m.transpose(2, 3).reshape(m.shape[0], m.shape[2], -1),
    )


def _outputs() -> Iterator[Variant]:
    name = "attn.c_proj"
    yield Variant("attn-out-proj-skipped", name, "the output projection is not applied", lambda at, x: x)
    for fault in ("load-conv1d-square-not-transposed", "attn-out-proj-transposed"):
        yield Variant(
            fault,
            name,
            "the weight of attn.c_proj is transposed (it is square, so that every shape fits)",
            lambda at, x: x @ at[f"{name}.weight"].mT + at[f"{name}.bias"],
        )
    yield from _linear(name, "attn-out-bias-dropped")


def _residuals() -> Iterator[Variant]:
    for word, branch in (("attn", "attention"), ("mlp", "the MLP")):
        op = f"residual.{word}"
        yield Variant(f"residual-{word}-missing", op, f"there is no skip around {branch}", lambda at, x, branch: branch)
        yield Variant(f"{word}-branch-missing", op, f"{branch} is not added to the stream", lambda at, x, branch: x)
        yield Variant("residual-sign", op, f"{branch} is subtracted from the stream", lambda at, x, branch: x - branch)
        yield Variant("residual-doubled", op, f"{branch} is added twice", lambda at, x, branch: x + 2 * branch)
        yield Variant(
            "residual-doubled", op, f"the stream is doubled at {branch}", lambda at, x, branch: 2 * x + branch
        )
        norm = "ln_1" if word == "attn" else "ln_2"
        yield Variant(
            "ln-before-residual",
            op,
            f"the skip around {branch} starts after {norm} instead of before it",
            lambda at, x, branch, norm=norm: at.formula.taps[f"h.{at.layer}.{norm}"] + branch,
        )
        for factor, says in ((0.5, "halved"), (math.sqrt(0.5), "divided by sqrt(2)")):
            yield Variant(
                "residual-halved", op, f"the sum after {branch} is {says}", lambda at, x, b, f=factor: (x + b) * f
            )
            yield Variant("residual-halved", op, f"{branch} is {says}", lambda at, x, b, f=factor: x + f * b)
        yield Variant(
            "residual-halved",
            op,
            f"{branch} is divided by sqrt(2 · layers) at every call, not once at the start",
            lambda at, x, b: x + b / math.sqrt(2 * at.size.layers),
        )


def _mlps() -> Iterator[Variant]:
    yield from _linear("mlp.c_fc", "mlp-bias-dropped")
    yield from _linear("mlp.c_proj", "mlp-out-bias-dropped")
    op = "mlp.activation"

    def tanh_gelu(slope: float = GELU_SLOPE, cubic: float = 0.044715, power: int = 3, half: float = 0.5) -> Operation:
        return lambda at, x: half * x * (1 + torch.tanh(slope * (x + cubic * x.pow(power))))

    table: list[tuple[str, str, Operation]] = [
        ("gelu-erf-for-tanh", "the exact (erf) GELU, where GPT-2 has the tanh approximation", lambda at, x: F.gelu(x)),
        ("gelu-sigmoid-approx", "QuickGELU, x · sigmoid(1.702 x), where GPT-2 has the tanh GELU", lambda at, x: x * (1.702 * x).sigmoid()),
        ("mlp-relu", "ReLU, where GPT-2 has the tanh GELU", lambda at, x: x.relu()),
        ("mlp-silu", "SiLU, where GPT-2 has the tanh GELU", lambda at, x: F.silu(x)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.44715 where 0.044715 belongs", tanh_gelu(cubic=0.44715)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.0044715 where 0.044715 belongs", tanh_gelu(cubic=0.0044715)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.044175 where 0.044715 belongs", tanh_gelu(cubic=0.044175)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.0447 where 0.044715 belongs", tanh_gelu(cubic=0.0447)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.04715 where 0.044715 belongs", tanh_gelu(cubic=0.04715)),
        ("gelu-coefficient-typo", "the tanh GELU without its cubic term", tanh_gelu(cubic=0.0)),
        ("gelu-coefficient-typo", "the tanh GELU with x² where x³ belongs", tanh_gelu(power=2)),
        ("gelu-coefficient-typo", "the tanh GELU without its factor 0.5", tanh_gelu(half=1.0)),
        ("gelu-coefficient-typo", "the tanh GELU with 2/pi where sqrt(2/pi) belongs", tanh_gelu(slope=2 / math.pi)),
        ("gelu-coefficient-typo", "the tanh GELU with sqrt(pi/2) where sqrt(2/pi) belongs", tanh_gelu(slope=math.sqrt(math.pi / 2))),
        ("gelu-coefficient-typo", "the tanh GELU with 1/sqrt(2 pi) where sqrt(2/pi) belongs", tanh_gelu(slope=1 / math.sqrt(2 * math.pi))),
        ("gelu-coefficient-typo", "the tanh GELU without sqrt(2/pi)", tanh_gelu(slope=1.0)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.8 where sqrt(2/pi) = 0.7979 belongs", tanh_gelu(slope=0.8)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.79 where sqrt(2/pi) = 0.7979 belongs", tanh_gelu(slope=0.79)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.798 where sqrt(2/pi) = 0.79788 belongs", tanh_gelu(slope=0.798)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.7978 where sqrt(2/pi) = 0.79788 belongs", tanh_gelu(slope=0.7978)),
        ("gelu-coefficient-typo", "the tanh GELU with 0.7979 where sqrt(2/pi) = 0.79788 belongs", tanh_gelu(slope=0.7979)),
        ("gelu-coefficient-typo", "x times the normal density's tanh, without its 1 +", lambda at, x: 0.5 * x * torch.tanh(GELU_SLOPE * (x + 0.044715 * x.pow(3)))),
        ("mlp-activation-missing", "there is no activation between the two projections", lambda at, x: x),
        ("activation-wrong", "tanh, where GPT-2 has the tanh GELU", lambda at, x: x.tanh()),
        ("activation-wrong", "a sigmoid, where GPT-2 has the tanh GELU", lambda at, x: x.sigmoid()),
        ("activation-wrong", "ELU, where GPT-2 has the tanh GELU", lambda at, x: F.elu(x)),
        ("activation-wrong", "leaky ReLU, where GPT-2 has the tanh GELU", lambda at, x: F.leaky_relu(x)),
        ("activation-wrong", "softplus, where GPT-2 has the tanh GELU", lambda at, x: F.softplus(x)),
        ("activation-wrong", "Mish, where GPT-2 has the tanh GELU", lambda at, x: F.mish(x)),
        ("activation-wrong", "SELU, where GPT-2 has the tanh GELU", lambda at, x: F.selu(x)),
        ("activation-wrong", "hard swish, where GPT-2 has the tanh GELU", lambda at, x: F.hardswish(x)),
        ("activation-wrong", "ReLU6, where GPT-2 has the tanh GELU", lambda at, x: F.relu6(x)),
        ("activation-wrong", "squared ReLU, where GPT-2 has the tanh GELU", lambda at, x: x.relu().pow(2)),
        ("activation-twice", "the GELU is applied twice", lambda at, x: F.gelu(F.gelu(x, approximate="tanh"), approximate="tanh")),
    ]  # fmt: skip
    for fault, says, function in table:
        yield Variant(fault, op, says, function)
    for digits in (7, 6, 5):
        slope = round(GELU_SLOPE, digits)
        says = f"the tanh GELU with {slope} where sqrt(2/pi) = 0.7978845608 belongs"
        yield Variant("gelu-coefficient-typo", op, says, tanh_gelu(slope=slope))
    for digits in (8, 9, 10, 11, 12):
        slope = round(GELU_SLOPE, digits)
        says = f"sqrt(2/pi) = {slope} is written with {digits} digits"
        yield Variant("gelu-constant-rounded", op, says, tanh_gelu(slope=slope), harmless=True)
    for bound in (1.0, 2.0, 3.0, 5.0, 6.0, 10.0):
        yield Variant(
            "gelu-clamped",
            op,
            f"the activation is clamped at {bound:g}",
            lambda at, x, bound=bound: F.gelu(x, approximate="tanh").clamp(max=bound),
        )
        yield Variant(
            "gelu-clamped",
            op,
            f"the activation's input is clamped to ±{bound:g}",
            lambda at, x, bound=bound: F.gelu(x.clamp(-bound, bound), approximate="tanh"),
        )
    yield Variant(
        "mlp-activation-twice",
        "mlp.c_proj",
        "a second GELU follows mlp.c_proj",
        lambda at, x: F.gelu(OPERATIONS["mlp.c_proj"](at, x), approximate="tanh"),
    )


def _wirings() -> Iterator[Variant]:
    """Ways to wire a block from the right parts."""

    def post_norm(at: At, x: Tensor) -> Tensor:
        x = at.do("ln_1", at.do("residual.attn", x, at.do("attn", x)))
        return at.do("ln_2", at.do("residual.mlp", x, at.do("mlp", x)))  # type: ignore[no-any-return]

    def parallel(at: At, x: Tensor) -> Tensor:
        attended = at.do("attn", at.do("ln_1", x))
        return at.do("residual.mlp", at.do("residual.attn", x, attended), at.do("mlp", at.do("ln_2", x)))  # type: ignore[no-any-return]

    def parallel_shared(at: At, x: Tensor) -> Tensor:
        normed = at.do("ln_1", x)
        return at.do("residual.mlp", at.do("residual.attn", x, at.do("attn", normed)), at.do("mlp", normed))  # type: ignore[no-any-return]

    def skip_from_start(at: At, x: Tensor) -> Tensor:
        after = at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))
        return at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", after)))  # type: ignore[no-any-return]

    def mlp_reads_attention(at: At, x: Tensor) -> Tensor:
        attended = at.do("attn", at.do("ln_1", x))
        after = at.do("residual.attn", x, attended)
        return at.do("residual.mlp", after, at.do("mlp", at.do("ln_2", attended)))  # type: ignore[no-any-return]

    def mlp_first(at: At, x: Tensor) -> Tensor:
        x = at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", x)))
        return at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))  # type: ignore[no-any-return]

    def skip_from_normed(at: At, x: Tensor) -> Tensor:
        x = at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))
        normed = at.do("ln_2", x)
        return at.do("residual.mlp", normed, at.do("mlp", normed))  # type: ignore[no-any-return]

    def norm_after_branch(at: At, x: Tensor) -> Tensor:
        x = at.do("residual.attn", x, at.do("ln_1", at.do("attn", x)))
        return at.do("residual.mlp", x, at.do("ln_2", at.do("mlp", x)))  # type: ignore[no-any-return]

    def norms_swapped(at: At, x: Tensor) -> Tensor:
        x = at.do("residual.attn", x, at.do("attn", at.do("ln_2", x)))
        return at.do("residual.mlp", x, at.do("mlp", at.do("ln_1", x)))  # type: ignore[no-any-return]

    def only_attention(at: At, x: Tensor) -> Tensor:
        return at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))  # type: ignore[no-any-return]

    def only_mlp(at: At, x: Tensor) -> Tensor:
        return at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", x)))  # type: ignore[no-any-return]

    def twice(at: At, x: Tensor) -> Tensor:
        return OPERATIONS["block"](at, OPERATIONS["block"](at, x))  # type: ignore[no-any-return]

    for fault, says, function in (
        ("post-norm", "the norms come after the additions (post-norm); GPT-2 has them before (pre-norm)", post_norm),
        ("post-norm", "the norms come after the branches, before the additions", norm_after_branch),
        ("parallel-block", "attention and MLP both read the block's input (in parallel)", parallel),
        ("parallel-block", "attention and MLP both read ln_1 of the block's input (in parallel)", parallel_shared),
        ("residual-from-block-input", "the skip around the MLP starts at the block's input", skip_from_start),
        ("mlp-reads-attention", "the MLP reads the attention's output, not the stream", mlp_reads_attention),
        ("mlp-before-attention", "the MLP comes before the attention", mlp_first),
        ("ln-swapped-in-block", "ln_1 and ln_2 are swapped", norms_swapped),
        ("mlp-branch-missing", "the block has no MLP", only_attention),
        ("attn-branch-missing", "the block has no attention", only_mlp),
        ("ln-before-residual", "the skip around the MLP starts after ln_2 instead of before it", skip_from_normed),
        ("block-skipped", "the block is skipped", lambda at, x: x),
        ("block-applied-twice", "the block is applied twice", twice),
    ):
        yield Variant(fault, "block", says, function, where="ln_1" if fault == "ln-swapped-in-block" else "")
    yield Variant(
        "mlp-missing",
        "mlp",
        "the MLP is one projection up and down of the wrong input",
        lambda at, x: torch.zeros_like(x),
    )
    for other in range(3):
        yield Variant(
            "layer-weights-mixed",
            "block",
            f"the block computes with the weights of layer {other}",
            lambda at, x, other=other: OPERATIONS["block"](at.at(other), x),
        )


def _stacks() -> Iterator[Variant]:
    """Ways to run through the blocks."""

    def over(layers: Callable[[int], list[int]]) -> Operation:
        def function(at: At, x: Tensor) -> Tensor:
            for layer in layers(at.size.layers):
                x = at.at(layer).do("block", x)
            return x

        return function

    def input_to_every(at: At, x: Tensor) -> Tensor:
        for layer in range(at.size.layers):
            out = at.at(layer).do("block", x)
        return out  # type: ignore[no-any-return]

    def input_added_again(at: At, x: Tensor) -> Tensor:
        stream = x
        for layer in range(at.size.layers):
            stream = at.at(layer).do("block", stream) + x
        return stream

    for fault, says, layers in (
        ("last-block-skipped", "the last block is not run", lambda L: list(range(L - 1))),
        ("first-block-skipped", "the first block is not run", lambda L: list(range(1, L))),
        ("blocks-in-reverse", "the blocks run in reverse", lambda L: list(reversed(range(L)))),
        ("first-block-for-all", "every layer runs block 0", lambda L: [0] * L),
        ("blocks-share-one-module", "every layer runs the last block", lambda L: [L - 1] * L),
        ("last-block-repeated", "the last block is run twice", lambda L: [*range(L), L - 1]),
        ("block-skipped", "every other block is skipped", lambda L: list(range(0, L, 2))),
    ):
        yield Variant(fault, "blocks", says, over(layers))

    def normed_after_each(at: At, x: Tensor) -> Tensor:
        for layer in range(at.size.layers):
            x = OPERATIONS["ln_f"](at, at.at(layer).do("block", x))
        return x

    def positions_late(at: At, x: Tensor) -> Tensor:
        taps = at.formula.taps
        x = at.at(0).do("block", taps["embedding.token"]) + taps["embedding.position"]
        for layer in range(1, at.size.layers):
            x = at.at(layer).do("block", x)
        return x

    says = "ln_f is applied after every block"
    yield Variant("final-ln-after-every-block", "blocks", says, normed_after_each, where="ln_f")
    yield Variant(
        "wpe-added-after-first-block",
        "blocks",
        "the positions are added after the first block",
        positions_late,
        where="embedding",
    )
    yield Variant(
        "input-to-every-block",
        "blocks",
        "every block receives the embeddings; only the last one's output is used",
        input_to_every,
    )
    yield Variant("stream-added-again", "blocks", "the embeddings are added again after every block", input_added_again)
    yield Variant("blocks-skipped", "blocks", "no block is run", lambda at, x: x)


def _soft_capped(cap: float, x: Tensor) -> Tensor:
    return cap * (x / cap).tanh()


def _heads() -> Iterator[Variant]:
    def answer(function: Callable[[Tensor], Tensor]) -> Operation:
        return lambda at, x: function(OPERATIONS["head"](at, x))

    table: list[tuple[str, str, Callable[[Tensor], Tensor]]] = [
        ("logits-activation", "a ReLU is applied to the logits", lambda x: x.relu()),
        ("logits-softmax", "a softmax is applied to the logits", lambda x: x.softmax(-1)),
        ("logits-activation", "a log-softmax is applied to the logits", lambda x: x.log_softmax(-1)),
        ("logits-activation", "a sigmoid is applied to the logits", lambda x: x.sigmoid()),
        ("logits-activation", "a tanh is applied to the logits", lambda x: x.tanh()),
        ("logits-activation", "a GELU is applied to the logits", lambda x: F.gelu(x, approximate="tanh")),
        ("logits-activation", "a GELU (erf) is applied to the logits", lambda x: F.gelu(x)),
        ("logits-low-precision", "the logits are rounded to bfloat16", lambda x: x.bfloat16().to(x.dtype)),
        ("logits-low-precision", "the logits are rounded to float16", lambda x: x.half().to(x.dtype)),
        ("logits-shifted", "the logits are shifted by one position", lambda x: x.roll(1, 1)),
        ("logits-shifted", "the logits are shifted by one position", lambda x: x.roll(-1, 1)),
        ("logits-normalised", "the logits have their mean subtracted", lambda x: x - x.mean(-1, keepdim=True)),
    ]
    for cap in (5.0, 10.0, 15.0, 20.0, 30.0, 50.0):
        table += [
            ("logits-soft-capped", f"the logits are soft-capped at {cap:g}", functools.partial(_soft_capped, cap)),
            (
                "logits-clamped",
                f"the logits are clamped to ±{cap:g}",
                functools.partial(torch.clamp, min=-cap, max=cap),
            ),
        ]
    for fault, says, function in table:
        yield Variant(fault, "head", says, answer(function))
    yield Variant(
        "logits-scaled",
        "head",
        "the logits are divided by sqrt(width)",
        lambda at, x: OPERATIONS["head"](at, x) / math.sqrt(at.size.width),
    )
    yield Variant(
        "logits-scaled",
        "head",
        "the logits are multiplied by sqrt(width)",
        lambda at, x: OPERATIONS["head"](at, x) * math.sqrt(at.size.width),
    )
