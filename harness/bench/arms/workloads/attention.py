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
from harness.bench.arms.verifiers import TensorVerifier, coarse_dtypes, kept_of, kept_rows, sample_rows
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
QUERIES_AT_ONCE = 256  # of the float64 answer
# The ledger of a child process is taken at one length only: each child takes the seconds of importing torch.
CHILD_LEDGER_TOKENS = 1024


def _make_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    def inputs(*, number: int = 0, stored_in: torch.dtype | None = None) -> Tensor:
        exact = attention_inputs(**_sizes(pool, tokens), number=number)
        return exact.to(stored_in or exact.dtype).to(device=pool.device, dtype=torch.float64)

    def sampled(number: int) -> Tensor:
        q, k, v = inputs(number=number)[:, 0]  # (H, T, D)
        rows = [divmod(row, tokens) for row in kept_of(pool.size.heads * tokens).tolist()]
        return torch.stack([_attended(q[h, t], k[h, : t + 1], v[h, : t + 1]) for h, t in rows])

    return TensorVerifier(
        expected=lambda: _exact(inputs()),
        control=control,
        bound=attention_bound(tokens),
        coarse=lambda dtype: _exact(inputs(stored_in=dtype)),
        dtypes=coarse_dtypes(arm_specs),
        sampled=functools.lru_cache(maxsize=1)(sampled),
    )


def _exact(inputs: Tensor) -> Tensor:
    """Return causal attention by the formula of `inputs` (3, 1, H, T, D), some queries at a time: (1, H, T, D).

    The scores of later positions are not computed, which is half the time, and float64's memory fits at every length.
    """
    q, k, v = inputs
    answer = torch.empty_like(q)
    for start in range(0, q.shape[-2], QUERIES_AT_ONCE):
        rows = q[..., start : start + QUERIES_AT_ONCE, :]
        end = start + rows.shape[-2]
        future = torch.ones(end - start, end, dtype=torch.bool, device=q.device).triu(start + 1)
        scores = (rows @ k[..., :end, :].mT / math.sqrt(q.shape[-1])).masked_fill_(future, -math.inf)
        answer[..., start:end, :] = scores.softmax(-1) @ v[..., :end, :]
    return answer


def _attended(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return attention of one query (D,) to keys and values (T, D): (D,)."""
    return (k @ q / math.sqrt(len(q))).softmax(-1) @ v


def _sizes(pool: ModelPool, tokens: int) -> dict[str, Any]:
    return {"tokens": tokens, "heads": pool.size.heads, "head_width": pool.size.head_width}


@work_kind("attention", make_verifier=_make_verifier)
def attention(pool: ModelPool, arm: ArmSpec, copy: int, *, tokens: int) -> Work:
    """Compute causal attention on seeded queries, keys and values (1, H, T, D): no projections, no subject."""
    pool.subject_for(arm)  # raises Missing if the arm does not exist on this device
    formula = arm.attention or "flash"
    arguments: dict[str, Any] = {**_sizes(pool, tokens), "dtype": arm.dtype, "device": pool.device}
    inputs = attention_inputs(**_sizes(pool, tokens)).to(device=pool.device, dtype=getattr(torch, arm.dtype))
    call = _attention(formula, inputs)
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
        use_input=lambda number: inputs.copy_(attention_inputs(**_sizes(pool, tokens), number=number)),
        sample=sample_rows,
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
    kind: str, *, tokens: int, heads: int, head_width: int, dtype: str, device: str
) -> Callable[[], Tensor]:
    """Return a call that computes attention of the first input; see `_attention`. A child process asks for it."""
    inputs = attention_inputs(tokens=tokens, heads=heads, head_width=head_width)
    return _attention(kind, inputs.to(device=device, dtype=getattr(torch, dtype)))


def attention_inputs(*, tokens: int, heads: int, head_width: int, number: int = 0) -> Tensor:
    """Return seeded queries, keys and values: (3, 1, H, T, D), other ones by number."""
    return torch.randn(3, 1, heads, tokens, head_width, generator=torch.Generator().manual_seed(number))


def _attention(kind: str, inputs: Tensor) -> Callable[[], Tensor]:
    """Return a call that computes attention of `inputs` (3, 1, H, T, D) without gradients -> (1, H, T, D).

    `kind` is naive, looped, flash, or a key of BACKENDS.
    """
    q, k, v = inputs
    heads, tokens, head_width = q.shape[1:]
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=inputs.device).triu(1)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).mul_(1 / math.sqrt(head_width)).masked_fill_(future, -math.inf)  # (..., T, T)
        return scores.softmax(-1) @ v

    def looped() -> Tensor:
        return torch.cat([naive(*(x[:, h : h + 1] for x in (q, k, v))) for h in range(heads)], dim=1)

    def fused() -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def by_backend() -> Tensor:
        with sdpa_kernel(BACKENDS[kind]):
            return fused()

    calls = {"naive": lambda: naive(q, k, v), "looped": looped, "flash": fused}
    return torch.no_grad()(calls.get(kind, by_backend))


def _block(pool: ModelPool, tokens: int) -> Size:
    full = pool.size
    return Size(f"one block of {full.name}", 1, tokens, 1, full.heads, full.width)


def _make_layer_verifier(pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, tokens: int) -> Verifier:
    block = _block(pool, tokens)

    @functools.cache
    def exact() -> tuple[Callable[[], Tensor], Tensor]:
        model = pool.subject.build(block, seed=0, dtype="float64", device=pool.device)
        return _layer_call(model.load(_published(pool, block)))

    def expected() -> Tensor:
        call, _ = exact()
        return call()

    @functools.lru_cache(maxsize=1)
    def sampled(number: int) -> Tensor:
        call, inputs = exact()
        inputs.copy_(_layer_inputs(block, number))
        return kept_rows(call())

    return TensorVerifier(expected=expected, control=control, bound=float32_bound(block), sampled=sampled)


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
    call, inputs = _layer_call(model)
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
        use_input=lambda number: inputs.copy_(_layer_inputs(block, number)),
        sample=sample_rows,
        tokens=tokens,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=arm.computes,
    )


def _layer_inputs(block: Size, number: int) -> Tensor:
    """Return seeded input (1, T, C), normal as the output of LayerNorm is, other one by number."""
    return torch.randn(1, block.context, block.width, generator=torch.Generator().manual_seed(number))


def _layer_call(model: Model) -> tuple[Callable[[], Tensor], Tensor]:
    """Return a call of the first block's attention, and its input, which may be overwritten."""
    layer = model.component("transformer.h.0.attn")
    parameter = next(model.module.parameters())
    x = _layer_inputs(model.size, 0).to(parameter)  # its dtype and device

    @torch.no_grad()
    def call() -> Tensor:
        output = layer(x)
        return output if isinstance(output, Tensor) else output[0]

    return call, x
