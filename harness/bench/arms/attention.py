"""Work of attention by itself, and of the subject's own attention layer."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from harness.bench import costs
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.models import FULL, counted_as, element_bytes, first_call
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.truth import Closeness, attention_bound, float32_bound
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.comparison import Work
from harness.bench.memory import peak_bytes_in_child
from harness.core.sizes import Size
from harness.subjects.model import Model, build_with_weights

BACKENDS = {
    "sdpa-math": SDPBackend.MATH,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
# A child costs the seconds of importing torch, so that only one length is counted by the kernel as well.
CHILD_LEDGER_TOKENS = 1024


def _judge(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    call = attention_call("head by head", **_sizes(pool, tokens), dtype="float64", device=pool.device)
    dtypes = {name: getattr(torch, way.computes) for name, way in arm_specs.items() if way.computes not in FULL}

    def coarse(dtype: torch.dtype) -> Tensor:
        made = attention_call(
            "head by head", **_sizes(pool, tokens), dtype="float64", device=pool.device, stored_in=dtype
        )
        return made()

    return Closeness(truth=call, control=control, bound=attention_bound(tokens), coarse=coarse, dtypes=dtypes)


def _sizes(pool: ModelPool, tokens: int) -> dict[str, Any]:
    return {"tokens": tokens, "heads": pool.size.heads, "head_width": pool.size.head_width}


@work_kind("attention", judge=_judge)
def attention(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int) -> Work:
    """Causal attention on given queries, keys and values (1, H, T, D): no projections, no subject."""
    pool.who(way)  # or Missing, where it is not for this device
    formula = way.attention or "flash"
    given: dict[str, Any] = {**_sizes(pool, tokens), "dtype": way.dtype, "device": pool.device}
    call = attention_call(formula, **given)
    if way.compiled:
        torch.compiler.reset()
        call = torch.compile(call, dynamic=False)
    ledgers: dict[str, Callable[[], int]] = {}
    on_cpu = torch.device(pool.device).type == "cpu"
    if on_cpu and way.dtype == "float32" and formula in ("naive", "flash") and not way.compiled:
        threads = torch.get_num_threads()
        counted: Any = formula
        ledgers["closed form"] = lambda: costs.attention_peak_bytes(counted, **_sizes(pool, tokens), threads=threads)
    if on_cpu and tokens == CHILD_LEDGER_TOKENS and not way.compiled:
        ledgers["child process"] = lambda: _in_child(kind=formula, **given, threads=torch.get_num_threads())
    cost = costs.attention(
        counted_as(formula),
        tokens=tokens,
        heads=pool.size.heads,
        head_width=pool.size.head_width,
        element_bytes=element_bytes(way),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        tokens=tokens,
        ledgers=ledgers,
        extras=first_call(way, call),
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=way.computes,
    )


@functools.cache
def _in_child(**asked: Any) -> int:
    """The peak of a child process; two comparisons that ask for the same call get one child."""
    return peak_bytes_in_child("harness.bench.arms.attention:attention_call", **asked)


def attention_call(
    kind: str,
    *,
    tokens: int,
    heads: int,
    head_width: int,
    dtype: str,
    device: str,
    stored_in: torch.dtype | None = None,
) -> Callable[[], Tensor]:
    """The call itself; "head by head" is for float64, so that the truth fits in memory at every length."""
    shape = (3, 1, heads, tokens, head_width)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q, k, v = drawn.to(stored_in or drawn.dtype).to(device=device, dtype=getattr(torch, dtype))
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).mul_(1 / math.sqrt(head_width)).masked_fill_(future, -math.inf)  # (..., T, T)
        return scores.softmax(-1) @ v

    def head_by_head() -> Tensor:
        return torch.cat([naive(*(x[:, h : h + 1] for x in (q, k, v))) for h in range(heads)], dim=1)

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def by_backend() -> Tensor:
        with sdpa_kernel(BACKENDS[kind]):
            return fused()

    calls = {"naive": lambda: naive(q, k, v), "looped": head_by_head, "flash": fused, "head by head": head_by_head}
    return torch.no_grad()(calls.get(kind, by_backend))


def _block(pool: ModelPool, tokens: int) -> Size:
    full = pool.size
    return Size(f"one block of {full.name}", 1, tokens, 1, full.heads, full.width)


def _judge_layer(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    block = _block(pool, tokens)

    def truth() -> Tensor:
        model = pool.subject.build(block, seed=0, dtype="float64", device=pool.device)
        return _layer_call(model.load(_published(pool, block)))()

    return Closeness(truth=truth, control=control, bound=float32_bound(block))


def _published(pool: ModelPool, block: Size) -> dict[str, Tensor]:
    # Each kind of attention draws other weights from the same seed; these go to all of them.
    model = pool.subject.build(block, seed=0)
    return model.weights.read(dict(model.module.named_parameters()))


@work_kind("attention-layer", judge=_judge_layer)
def attention_layer(pool: ModelPool, way: ArmSpec, copy: int, *, tokens: int) -> Work:
    """The subject's own attention with its projections, built with a context of `tokens`, on a normed stream."""
    block = _block(pool, tokens)
    options = {} if way.attention is None else {"attention": way.attention}
    who = pool.who(way)
    model = build_with_weights(who, block, _published(pool, block), way.dtype, device=pool.device, **options)
    call = _layer_call(model)
    cost = costs.attention_layer(
        block,
        tokens=tokens,
        attention=counted_as(way.attention),
        element_bytes=element_bytes(way),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        tokens=tokens,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=way.computes,
    )


def _layer_call(model: Model) -> Callable[[], Tensor]:
    """The first block's attention on a stream (1, T, C) as LayerNorm leaves it."""
    layer = model.component("transformer.h.0.attn")
    like = next(model.module.parameters())
    drawn = torch.randn(1, model.size.context, model.size.width, generator=torch.Generator().manual_seed(0))
    x = drawn.to(like)

    @torch.no_grad()
    def call() -> Tensor:
        output = layer(x)
        return output if isinstance(output, Tensor) else output[0]

    return call
