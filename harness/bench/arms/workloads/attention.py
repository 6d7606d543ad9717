"""Work of attention alone, and of the subject's own attention layer."""

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
from harness.bench.arms.error_bounds import attention_bound, float32_bound
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import TensorVerifier, coarse_dtypes
from harness.bench.arms.workloads.compilation import first_call_figures
from harness.bench.arms.workloads.cost_terms import attention_cost_kind, element_bytes
from harness.bench.ceilings import last_level_cache_bytes
from harness.bench.memory import peak_bytes_in_child
from harness.bench.work import Work
from harness.core.sizes import Size
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model

BACKENDS = {
    "sdpa-math": SDPBackend.MATH,
    "sdpa-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "sdpa-cudnn": SDPBackend.CUDNN_ATTENTION,
}
# The ledger of a child process is taken at one length only: each child takes the seconds of importing torch.
CHILD_LEDGER_TOKENS = 1024


def _make_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    call = attention_call("head by head", **_sizes(pool, tokens), dtype="float64", device=pool.device)

    def coarse(dtype: torch.dtype) -> Tensor:
        rounded = attention_call(
            "head by head", **_sizes(pool, tokens), dtype="float64", device=pool.device, stored_in=dtype
        )
        return rounded()

    return TensorVerifier(
        expected=call,
        control=control,
        bound=attention_bound(tokens),
        coarse=coarse,
        dtypes=coarse_dtypes(arm_specs),
    )


def _sizes(pool: ModelPool, tokens: int) -> dict[str, Any]:
    return {"tokens": tokens, "heads": pool.size.heads, "head_width": pool.size.head_width}


@work_kind("attention", make_verifier=_make_verifier)
def attention(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int) -> Work:
    """Compute causal attention on seeded queries, keys and values (1, H, T, D): no projections, no subject."""
    pool.subject_for(arm)  # raises Missing if the arm does not exist on this device
    formula = arm.attention or "flash"
    arguments: dict[str, Any] = {**_sizes(pool, tokens), "dtype": arm.dtype, "device": pool.device}
    call = attention_call(formula, **arguments)
    if arm.compiled:
        torch.compiler.reset()
        call = torch.compile(call, dynamic=False)
    ledgers: dict[str, Callable[[], int]] = {}
    on_cpu = torch.device(pool.device).type == "cpu"
    if on_cpu and arm.dtype == "float32" and formula in ("naive", "flash") and not arm.compiled:
        threads = torch.get_num_threads()
        kind: Any = formula
        ledgers["closed form"] = lambda: costs.attention_peak_bytes(kind, **_sizes(pool, tokens), threads=threads)
    if on_cpu and tokens == CHILD_LEDGER_TOKENS and not arm.compiled:
        ledgers["child process"] = lambda: _cached_peak_bytes(
            kind=formula, **arguments, threads=torch.get_num_threads()
        )
    cost = costs.attention(
        attention_cost_kind(formula),
        tokens=tokens,
        heads=pool.size.heads,
        head_width=pool.size.head_width,
        element_bytes=element_bytes(arm),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        tokens=tokens,
        ledgers=ledgers,
        extras=first_call_figures(arm, call),
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
    )


@functools.cache
def _cached_peak_bytes(**arguments: Any) -> int:
    """Return the peak memory of the call in a child process; a call that two comparisons share takes one child."""
    return peak_bytes_in_child("harness.bench.arms.workloads.attention:attention_call", **arguments)


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
    """Return a call that computes attention without gradients -> (1, H, T, D).

    `kind` is naive, looped, flash, a key of BACKENDS, or "head by head", which needs so little memory that float64 fits
    at every length. With `stored_in`, the inputs are rounded to that dtype.
    """
    shape = (3, 1, heads, tokens, head_width)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q, k, v = inputs.to(stored_in or inputs.dtype).to(device=device, dtype=getattr(torch, dtype))
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


def _make_layer_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    block = _block(pool, tokens)

    def expected() -> Tensor:
        model = pool.subject.build(block, seed=0, dtype="float64", device=pool.device)
        return _layer_call(model.load(_published(pool, block)))()

    return TensorVerifier(expected=expected, control=control, bound=float32_bound(block))


def _published(pool: ModelPool, block: Size) -> dict[str, Tensor]:
    # Each kind of attention draws other weights from the same seed, so all kinds get the weights of one model.
    model = pool.subject.build(block, seed=0)
    return model.weights.read(dict(model.module.named_parameters()))


@work_kind("attention-layer", make_verifier=_make_layer_verifier)
def attention_layer(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int) -> Work:
    """Compute the subject's own attention with its projections, built with a context of `tokens`."""
    block = _block(pool, tokens)
    options = {} if arm.attention is None else {"attention": arm.attention}
    model = build_with_weights(
        pool.subject_for(arm), block, _published(pool, block), arm.dtype, device=pool.device, **options
    )
    call = _layer_call(model)
    cost = costs.attention_layer(
        block,
        tokens=tokens,
        attention=attention_cost_kind(arm.attention),
        element_bytes=element_bytes(arm),
        last_level_bytes=last_level_cache_bytes(pool.device),
    )
    return Work(
        call=call,
        answer=call,
        tokens=tokens,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
    )


def _layer_call(model: Model) -> Callable[[], Tensor]:
    """Return a call of the first block's attention on input (1, T, C), normal as the output of LayerNorm is."""
    layer = model.component("transformer.h.0.attn")
    parameter = next(model.module.parameters())
    inputs = torch.randn(1, model.size.context, model.size.width, generator=torch.Generator().manual_seed(0))
    x = inputs.to(parameter)  # its dtype and device

    @torch.no_grad()
    def call() -> Tensor:
        output = layer(x)
        return output if isinstance(output, Tensor) else output[0]

    return call
