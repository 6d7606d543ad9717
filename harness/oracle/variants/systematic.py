"""Variants that no table lists: every operation of a block changed in each of a few ways, the simplest first.

The tables have the mistakes that people are known to make; these are tried where none of them matches. They have no id.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.oracle.formula import EPSILON, At, Operation, operation_of
from harness.oracle.variants.systematic_masks import other_masks
from harness.oracle.variants.variant import Variant

# What each value of a block is called, and its axes. Those of one shape may stand in for each other.
STREAM = ("batch", "time", "channel")
HEADS = ("batch", "heads", "positions", "head channels")
SCORES = ("batch", "heads", "queries", "keys")
VALUES: dict[str, tuple[str, tuple[str, ...]]] = {
    "ln_1": ("ln_1's output", STREAM),
    "attn.c_proj": ("attention's output", STREAM),
    "attn.merge": ("the merged heads", STREAM),
    "residual.attn": ("the stream after attention", STREAM),
    "ln_2": ("ln_2's output", STREAM),
    "mlp.c_fc": ("mlp.c_fc's output", STREAM),
    "mlp.activation": ("the activation's output", STREAM),
    "mlp.c_proj": ("the MLP's output", STREAM),
    "attn.scores": ("the unscaled scores", SCORES),
    "attn.scale": ("the scores before the mask", SCORES),
    "attn.mask": ("the masked scores", SCORES),
    "attn.softmax": ("the attention weights", SCORES),
    "attn.mix": ("the heads' outputs", HEADS),
}
SPLIT = ("the queries", "the keys", "the values")  # the parts of `attn.split`
# Operation -> what it is called in a sentence, the names of its inputs and their axes.
OPERATIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "ln_1": ("ln_1", ("the block's input",), STREAM),
    "attn": ("attention", ("ln_1's output",), STREAM),
    "attn.scores": ("the product of queries and keys", ("the queries", "the keys"), HEADS),
    "attn.scale": ("the scaling", ("the unscaled scores",), SCORES),
    "attn.mask": ("the mask", ("the scores",), SCORES),
    "attn.softmax": ("the softmax", ("the masked scores",), SCORES),
    "attn.mix": ("the mixing of values", ("the attention weights", "the values"), HEADS),
    "attn.merge": ("the merge of heads", ("the heads' outputs",), HEADS),
    "attn.c_proj": ("attn.c_proj", ("the merged heads",), STREAM),
    "residual.attn": ("the sum after attention", ("the block's input", "attention's output"), STREAM),
    "ln_2": ("ln_2", ("the stream after attention",), STREAM),
    "mlp": ("the MLP", ("ln_2's output",), STREAM),
    "mlp.c_fc": ("mlp.c_fc", ("ln_2's output",), STREAM),
    "mlp.activation": ("the activation", ("mlp.c_fc's output",), STREAM),
    "mlp.c_proj": ("mlp.c_proj", ("the activation's output",), STREAM),
    "residual.mlp": ("the sum after the MLP", ("the stream after attention", "the MLP's output"), STREAM),
}


@functools.cache
def systematic_variants() -> tuple[Variant, ...]:
    """Return the variants, in the order in which the diagnosis prefers them."""
    return (*_other_axes(), *_other_inputs(), *other_masks(), *_other_order(), *_changed_inputs(), *_other_parts())


def _variant(operation: str, says: str, function: Operation) -> Variant:
    return Variant("", operation, says, function)


def _gpt2(operation: str) -> Operation:
    return lambda at, *inputs: operation_of(operation)(at, *inputs)


# A reduction over another axis.


def _other_axes() -> Iterator[Variant]:
    for axis, name in enumerate(SCORES[:3]):
        says = f"the softmax is over {name} (dim {axis}) instead of keys (dim 3)"
        for empty in (None, 0.0):  # a query that sees no key has NaN, or 0
            yield _variant("attn.softmax", says, _softmax_over(axis, empty))
    yield _variant(
        "attn",
        "attention is over the rows of the batch (dim 0) instead of the positions (dim 1), each position by itself",
        lambda at, x: _gpt2("attn")(at, x.transpose(0, 1)).transpose(0, 1),
    )
    yield _variant("attn.softmax", "one softmax is over queries and keys together", _joint_softmax)
    for norm in ("ln_1", "ln_2"):
        yield _variant(norm, f"{norm} normalises each head's channels by themselves", _norm_in_heads(norm))


def _softmax_over(axis: int, empty: float | None) -> Operation:
    def softmax(at: At, scores: Tensor) -> Tensor:
        weights = scores.softmax(axis)
        return weights if empty is None else weights.nan_to_num(empty)

    return softmax


def _joint_softmax(at: At, scores: Tensor) -> Tensor:
    return scores.flatten(2).softmax(-1).view_as(scores)


def _norm_in_heads(name: str) -> Operation:
    def norm(at: At, x: Tensor) -> Tensor:
        in_heads = x.unflatten(-1, (-1, at.size.head_width))
        scaled = F.layer_norm(in_heads, in_heads.shape[-1:], eps=EPSILON).flatten(-2)
        return scaled * at[f"{name}.weight"] + at[f"{name}.bias"]

    return norm


# An operation that reads another value of the same shape.


def _other_inputs() -> Iterator[Variant]:
    """Yield each operation with each of its inputs replaced by a value that is computed before it, or by another."""
    for operation, (words, inputs, axes) in OPERATIONS.items():
        for number, own in enumerate(inputs):
            for other, value in _values_of(axes, operation):
                if other != own:
                    says = f"{words} reads {other} instead of {own}"
                    yield _variant(operation, says, _with_input(operation, number, value))
        if len(inputs) == 2:
            says = f"{words}: {inputs[0]} and {inputs[1]} are exchanged"
            yield _variant(operation, says, _with_inputs_exchanged(operation))


def _values_of(axes: tuple[str, ...], before: str) -> Iterator[tuple[str, Callable[[At], Tensor]]]:
    if axes == HEADS:
        yield from ((name, functools.partial(_split_part, number)) for number, name in enumerate(SPLIT))
    if axes == STREAM:
        yield "the block's input", _block_input
        yield "the block's input, after ln_1", lambda at: at.formula.taps[f"h.{at.layer}.ln_1"]
        yield "ln_2 of the block's input", lambda at: operation_of("ln_2")(at, _block_input(at))
        yield "the token embeddings", lambda at: at.formula.taps["embedding.token"]
        yield "the embeddings", lambda at: at.formula.taps["embedding"]
    for place, (name, own_axes) in VALUES.items():
        if own_axes == axes and place != before:
            yield name, functools.partial(_tap, place)


def _tap(place: str, at: At) -> Tensor:
    found: Tensor = at.formula.taps[f"h.{at.layer}.{place}"]  # KeyError: it is not computed yet
    return found


def _split_part(number: int, at: At) -> Tensor:
    part: Tensor = at.formula.taps[f"h.{at.layer}.attn.split"][number]
    return part


def _block_input(at: At) -> Tensor:
    taps = at.formula.taps
    found: Tensor = taps["embedding"] if at.layer == 0 else taps[f"h.{(at.layer or 0) - 1}"]
    return found


def _with_input(operation: str, number: int, value: Callable[[At], Tensor]) -> Operation:
    def function(at: At, *inputs: Any) -> Any:
        other = value(at)
        if other.shape != inputs[number].shape:
            raise RuntimeError("of another shape")
        return _gpt2(operation)(at, *inputs[:number], other, *inputs[number + 1 :])

    return function


def _with_inputs_exchanged(operation: str) -> Operation:
    return lambda at, a, b: _gpt2(operation)(at, b, a)


# Neighbours in the other order, and an operation left out or applied twice.


def _other_order() -> Iterator[Variant]:
    for operation, (words, inputs, _) in OPERATIONS.items():
        if len(inputs) == 1 and operation not in ("attn.merge", "mlp.c_fc", "mlp.c_proj"):
            yield _variant(operation, f"{words} is left out", lambda at, x: x)
            yield _variant(operation, f"{words} is applied twice", _twice(operation))
    yield _variant("mlp.c_fc", "the activation comes before mlp.c_fc", _activated_before)
    for norm, first in (("ln_1", "ln_2"), ("ln_2", "ln_1")):
        yield _variant(norm, f"{norm} reads its input after {first}", _followed_by(first, norm))
    yield _variant("attn.c_proj", "ln_1 follows attn.c_proj", _followed_by("attn.c_proj", "ln_1"))
    yield _variant("mlp.c_proj", "ln_2 follows mlp.c_proj", _followed_by("mlp.c_proj", "ln_2"))


def _twice(operation: str) -> Operation:
    return lambda at, x: _gpt2(operation)(at, _gpt2(operation)(at, x))


def _followed_by(operation: str, after: str) -> Operation:
    return lambda at, x: _gpt2(after)(at, _gpt2(operation)(at, x))


def _activated_before(at: At, x: Tensor) -> Any:
    return _gpt2("mlp.c_fc")(at, _gpt2("mlp.activation")(at, x))


# An input or the output changed by something simple.

SIMPLE: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("negated", lambda x: -x),
    ("doubled", lambda x: 2 * x),
    ("halved", lambda x: x / 2),
    ("squared", lambda x: x.square()),
    ("without its sign", lambda x: x.abs()),
    ("zero", lambda x: 0 * x),
)


def _changed_inputs() -> Iterator[Variant]:
    for operation, (_, inputs, axes) in OPERATIONS.items():
        for number, own in enumerate(inputs):
            own_axes = SCORES if own == "the attention weights" else axes
            for says, change in (*SIMPLE, *_moved(own_axes)):
                is_plural = own.endswith("s") and not own.endswith("'s output")
                yield _variant(
                    operation,
                    f"{own} {'are' if is_plural else 'is'} {says} before {OPERATIONS[operation][0]}",
                    _with_change(operation, number, change),
                )


def _moved(axes: tuple[str, ...]) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """Yield each reversal and each shift along one axis, and a swap of the last two axes."""
    for axis, name in enumerate(axes):
        yield f"reversed along {name} (dim {axis})", functools.partial(torch.flip, dims=(axis,))
        for shift in (1, -1):
            says = f"shifted by {shift:+d} along {name} (dim {axis})"
            yield says, functools.partial(torch.roll, shifts=shift, dims=axis)
        yield f"replaced by the mean over {name} (dim {axis})", functools.partial(_mean, axis)
        yield f"cumulated along {name} (dim {axis})", functools.partial(torch.cumsum, dim=axis)
    yield "transposed in its last two axes", lambda x: x.mT


def _mean(axis: int, x: Tensor) -> Tensor:
    return x.mean(axis, keepdim=True).expand_as(x)


def _with_change(operation: str, number: int, change: Callable[[Tensor], Tensor]) -> Operation:
    def function(at: At, *inputs: Any) -> Any:
        return _gpt2(operation)(at, *inputs[:number], change(inputs[number]), *inputs[number + 1 :])

    return function


# A part only: one head's share of a bias, half of the channels.


def _other_parts() -> Iterator[Variant]:
    for part, name in enumerate(SPLIT):
        for head in range(4):
            says = f"{name} of head {head} have no bias"
            yield _variant("attn.qkv", says, _without_bias_of(part, head))
    for operation, (words, inputs, axes) in OPERATIONS.items():
        for number, own in enumerate(inputs):
            for half, where in ((0, "second"), (1, "first")):
                says = f"{words}: the {where} half of the channels of {own} is zero"
                if axes in (STREAM, HEADS):
                    yield _variant(operation, says, _with_change(operation, number, functools.partial(_half, half)))
    for half, where in ((0, "first"), (1, "second")):
        says = f"only the {where} half of the channels has the activation"
        yield _variant("mlp.activation", says, functools.partial(_half_activated, half))


def _without_bias_of(part: int, head: int) -> Operation:
    def function(at: At, x: Tensor) -> Tensor:
        C, D = at.size.width, at.size.head_width
        if head >= at.size.heads:
            raise IndexError("there is no such head")
        bias = at["attn.c_attn.bias"].clone()
        bias[part * C + head * D : part * C + (head + 1) * D] = 0
        return x @ at["attn.c_attn.weight"] + bias

    return function


def _half(half: int, x: Tensor) -> Tensor:
    kept = torch.zeros_like(x)
    part = slice(0, x.shape[-1] // 2) if half == 0 else slice(x.shape[-1] // 2, None)
    kept[..., part] = x[..., part]
    return kept


def _half_activated(half: int, at: At, x: Tensor) -> Tensor:
    found = x.clone()
    part = slice(0, x.shape[-1] // 2) if half == 0 else slice(x.shape[-1] // 2, None)
    found[..., part] = _gpt2("mlp.activation")(at, x[..., part])
    return found
