"""GPT-2 as one formula over the published weights: every operation has a name, is recorded, and can be replaced.

While a subject that declares deviations is judged, the formula is GPT-2 with these (`harness/oracle/declared.py`).
Dropout is that of a subject, replayed (`harness/oracle/replayed_dropout.py`); otherwise there is none.
"""

from __future__ import annotations

import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.originals import with_originals
from harness.core.sizes import Size
from harness.oracle.declared import declared_gpt2
from harness.oracle.replayed_dropout import with_dropout

EPSILON = 1e-5  # GPT-2's layer_norm_epsilon
Operation = Callable[..., Any]


@dataclass(frozen=True)
class Replacement:
    """A variant put into the formula: in one layer, or everywhere that the operation occurs if `layer` is None."""

    operation: str
    function: Operation
    layer: int | None = None


@dataclass
class Formula:
    """One evaluation of GPT-2 with some operations replaced.

    Attributes:
        weights: The weights under their published names, all of one dtype.
        changes: The replacements. If several are for the same operation and layer, the last one counts.
        start: How many positions come before the ids: more than 0 when decoding with a cache.
        past: The cached keys and values by layer, (B, H, S, D) each; None without a cache.
        taps: The output of each operation under its place (`embedding`, `h.0.attn.scores`, `ln_f`, `head`), in
            execution order, after dropout. A composite (`h.0.attn`, `h.0`) comes after its parts.
    """

    size: Size
    weights: Mapping[str, Tensor]
    changes: Sequence[Replacement] = ()
    start: int = 0
    past: dict[int, tuple[Tensor, Tensor]] | None = None
    taps: dict[str, Any] = field(default_factory=dict)

    @with_originals
    def __call__(self, ids: Tensor) -> Tensor:
        """Return the logits (B, T, V) of `ids` (B, T)."""
        logits: Tensor = self.do("model", None, ids)
        return logits

    def do(self, operation: str, layer: int | None, *inputs: Any) -> Any:
        """Apply the operation, or its replacement, to the inputs; record the output in `taps` and return it."""
        function = operation_of(operation)
        for change in self.changes:
            if change.operation == operation and change.layer in (None, layer):
                function = change.function
        found = with_dropout(operation, layer, function(At(self, layer), *inputs))
        self.taps[place(operation, layer)] = found
        return found


@dataclass(frozen=True)
class At:
    """The place at which an operation runs: it gives access to the weights, the sizes and the other operations.

    `layer` is None outside the blocks.
    """

    formula: Formula
    layer: int | None

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight by its name without prefix: `ln_1.weight` of this layer, or `ln_f.weight`."""
        weights = self.formula.weights
        own = f"transformer.h.{self.layer}.{name}"
        return weights[own] if own in weights else weights[f"transformer.{name}"]

    def do(self, operation: str, *inputs: Any) -> Any:
        """Apply another operation in the same layer."""
        return self.formula.do(operation, self.layer, *inputs)

    def at(self, layer: int) -> At:
        """Return the same place in another layer."""
        return At(self.formula, layer)

    @property
    def size(self) -> Size:
        """The sizes of the model."""
        return self.formula.size

    @property
    def start(self) -> int:
        """The position of the first id."""
        return self.formula.start


def place(operation: str, layer: int | None) -> str:
    """Return the place of an operation: `attn.scores` in layer 0 -> `h.0.attn.scores`, `block` -> `h.0`."""
    if layer is None:
        return operation
    return f"h.{layer}" if operation == "block" else f"h.{layer}.{operation}"


# The formula, from the outside in. T queries see S keys; S = T without a cache. Docstrings here are shapes.


def model(at: At, ids: Tensor) -> Tensor:
    """(B, T) -> (B, T, V)."""
    x = at.do("embedding", at.do("embedding.token", ids), at.do("embedding.position", ids))
    x = at.do("blocks", x)
    return at.do("head", at.do("ln_f", x))  # type: ignore[no-any-return]


def token_embedding(at: At, ids: Tensor) -> Tensor:
    """(B, T) -> (B, T, C)."""
    return at["wte.weight"][ids]


def position_embedding(at: At, ids: Tensor) -> Tensor:
    """(B, T) -> (T, C)."""
    return at["wpe.weight"][at.start : at.start + ids.shape[1]]


def blocks(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C)."""
    for layer in range(at.size.layers):
        x = at.at(layer).do("block", x)
    return x


def block(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C)."""
    x = at.do("residual.attn", x, at.do("attn", at.do("ln_1", x)))
    return at.do("residual.mlp", x, at.do("mlp", at.do("ln_2", x)))  # type: ignore[no-any-return]


def attention(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C)."""
    q, k, v = at.do("attn.split", at.do("attn.qkv", x))
    if at.formula.past is not None and at.layer is not None:
        k, v = at.do("cache", k, v)
    scores = at.do("attn.scale", at.do("attn.scores", q, k))
    weights = at.do("attn.softmax", at.do("attn.mask", scores))
    return at.do("attn.c_proj", at.do("attn.merge", at.do("attn.mix", weights, v)))  # type: ignore[no-any-return]


def cache(at: At, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Append the new keys and values to the cached ones, (B, H, S, D) each, and cache the result."""
    past, layer = at.formula.past, at.layer
    assert past is not None
    assert layer is not None
    if layer in past:
        k, v = torch.cat((past[layer][0], k), dim=2), torch.cat((past[layer][1], v), dim=2)
    past[layer] = k, v
    return k, v


def linear(name: str) -> Operation:
    """Return x W + b; the checkpoint's W is (in, out)."""
    return lambda at, x: x @ at[f"{name}.weight"] + at[f"{name}.bias"]


def split(at: At, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(B, T, 3C) -> 3 × (B, H, T, D): thirds, then heads side by side.

    Of fewer keys and values (grouped queries), each serves as many neighbouring heads of queries.
    """
    C, H = at.size.width, at.size.heads
    q, k, v = (heads(at, x) for x in qkv.split((C, *2 * ((qkv.shape[-1] - C) // 2,)), dim=-1))
    return q, k.repeat_interleave(H // k.shape[1], 1), v.repeat_interleave(H // v.shape[1], 1)


def heads(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, H, T, D)."""
    split_up: Tensor = x.unflatten(-1, (-1, at.size.head_width))
    return split_up.transpose(1, 2)


def visible(T: int, S: int) -> Tensor:
    """Return (T, S), true where a query sees a key. The queries are the last T of S positions."""
    return torch.ones(T, S, dtype=torch.bool).tril(S - T)


def merge(at: At, mixed: Tensor) -> Tensor:
    """(B, H, T, D) -> (B, T, C)."""
    return mixed.transpose(1, 2).flatten(2)


def norm(name: str) -> Operation:
    """Return (x - mean) / sqrt(variance + epsilon) · gain + bias, over the channels."""
    return lambda at, x: F.layer_norm(x, x.shape[-1:], at[f"{name}.weight"], at[f"{name}.bias"], EPSILON)


def mlp(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, C)."""
    return at.do("mlp.c_proj", at.do("mlp.activation", at.do("mlp.c_fc", x)))  # type: ignore[no-any-return]


def gate(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, 4C), of a gated MLP, which GPT-2's is not; the gate need not have a bias."""
    product = x @ at["mlp.c_gate.weight"]
    name = f"transformer.h.{at.layer}.mlp.c_gate.bias"
    return product + at["mlp.c_gate.bias"] if name in at.formula.weights else product


def head(at: At, x: Tensor) -> Tensor:
    """(B, T, C) -> (B, T, V), by the token embedding; by a matrix of its own if the weights have one, and a bias."""
    weights = at.formula.weights
    logits = x @ weights.get("lm_head.weight", at["wte.weight"]).mT
    return logits + weights["lm_head.bias"] if "lm_head.bias" in weights else logits


def loss(at: At, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy in nats of logits (B, T, V) and targets (B, T), which are already shifted."""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


OPERATIONS: dict[str, Operation] = {
    "model": model,
    "embedding.token": token_embedding,
    "embedding.position": position_embedding,
    "embedding": lambda at, token, position: token + position,
    "blocks": blocks,
    "block": block,
    "ln_1": norm("ln_1"),
    "attn": attention,
    "attn.qkv": linear("attn.c_attn"),
    "attn.split": split,
    "cache": cache,
    "attn.scores": lambda at, q, k: q @ k.mT,
    "attn.scale": lambda at, scores: scores / math.sqrt(at.size.head_width),
    "attn.mask": lambda at, scores: scores.masked_fill(~visible(*scores.shape[-2:]), -math.inf),
    "attn.softmax": lambda at, scores: scores.softmax(-1),
    "attn.mix": lambda at, weights, v: weights @ v,
    "attn.merge": merge,
    "attn.c_proj": linear("attn.c_proj"),
    "residual.attn": lambda at, x, branch: x + branch,
    "ln_2": norm("ln_2"),
    "mlp": mlp,
    "mlp.c_gate": gate,
    "mlp.c_fc": linear("mlp.c_fc"),
    "mlp.activation": lambda at, x: F.gelu(x, approximate="tanh"),
    "mlp.c_proj": linear("mlp.c_proj"),
    "residual.mlp": lambda at, x, branch: x + branch,
    "ln_f": norm("ln_f"),
    "head": head,
    "loss": loss,
}


# The operations of the declared GPT-2 that are being computed.
_computed: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("computed operations", default=frozenset())


def operation_of(name: str) -> Operation:
    """Return GPT-2's operation of that name, or the one that the subject declares in its place.

    A declared operation that is GPT-2's with a change, as scores that are clamped, gets GPT-2's own for its own name.
    """
    gpt2 = declared_gpt2()
    declared = None if gpt2 is None or name in _computed.get() else gpt2.operations.get(name)
    if declared is None:
        return OPERATIONS[name]

    def compute(at: At, *inputs: Any) -> Any:
        token = _computed.set(_computed.get() | {name})
        try:
            return declared(at, *inputs)
        finally:
            _computed.reset(token)

    return compute
