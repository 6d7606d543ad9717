"""The work that arms do: each function takes a built model and gives the call to time and the answer to verify."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.workshop import Workshop, caching, generating, round_parameters
from harness.adapters.calling import unpack
from harness.compare import Work
from harness.memory import peak_bytes_in_child
from harness.subject import Model, Subject

# The lessons' recipe; the rate is the peak of their schedule. Fused: the loop over single tensors takes six times as
# long (0.95 s against 0.16 s at 124M on two cores), the same in every arm, and would hide what differs.
ADAMW = {"lr": 6e-4, "betas": (0.9, 0.95), "weight_decay": 0.1, "fused": True}
# How many steps of decoding are verified; each is one row of logits.
VERIFIED_STEPS = 8


def forward(model: Model, ids: Tensor, *, autocast: str | None = None) -> Work:
    """Logits of every position of `ids` (B, T), without gradients."""

    @torch.no_grad()
    def call() -> Tensor:
        with _autocast(ids, autocast):
            return model.logits(ids)

    return Work(call=call, answer=call, tokens=ids.numel())


def training_step(
    workshop: Workshop,
    model: Model,
    ids: Tensor,
    targets: Tensor,
    *,
    autocast: str | None = None,
    stored_in: torch.dtype | None = None,
) -> Work:
    """Forward, backward and AdamW on one batch (B, T); no dropout, so that the answer is the same each time.

    The answer is the logits after one step from the run's weights: a fault in any of the three shows in them.
    With `stored_in`, the answer's parameters are rounded to that type whenever they are written.
    """

    def step(optimizer: torch.optim.Optimizer) -> None:
        with _autocast(ids, autocast):
            loss = model.loss(ids, targets)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)  # last, so that no arm keeps its gradients while another works

    def answer() -> Tensor:
        workshop.restore(model, stored_in)
        step(_adamw(model))
        round_parameters(model, stored_in)
        with torch.no_grad(), _autocast(ids, autocast):
            return model.logits(ids)

    optimizer = _adamw(model)
    return Work(call=lambda: step(optimizer), answer=answer, tokens=ids.numel())


def decode(who: Subject, model: Model, ids: Tensor, *, prompt: int, autocast: str | None = None) -> Work:
    """One cached step: the logits of the next position of `ids` (B, T), after the first `prompt` positions.

    Each block starts behind the prompt anew, so that every block of every arm covers the same positions.
    """
    cacher = caching(who)
    cache: Any = None
    position = 0

    @torch.no_grad()
    def prepare() -> None:
        nonlocal cache, position
        with _autocast(ids, autocast):
            cache = cacher.new_cache(model, ids.shape[0])
            cacher.step(model, ids[:, :prompt], cache)
        position = prompt

    @torch.no_grad()
    def call() -> Tensor:
        nonlocal position
        if position == ids.shape[1]:
            prepare()
        with _autocast(ids, autocast):
            logits = cacher.step(model, ids[:, position : position + 1], cache)
        position += 1
        return logits

    def answer() -> Tensor:
        prepare()
        return torch.cat([call() for _ in range(VERIFIED_STEPS)], dim=1)  # (B, steps, V)

    return Work(call=call, answer=answer, prepare=prepare, tokens=ids.shape[0])


def decoded_at_once(model: Model, ids: Tensor, *, prompt: int) -> Work:
    """The answer that `decode` should give, from one pass over the whole sequence, without a cache."""
    whole = forward(model, ids[:, : prompt + VERIFIED_STEPS])
    return dataclasses.replace(whole, answer=lambda: whole.answer()[:, prompt:])


@dataclasses.dataclass(frozen=True)
class Generated:
    """What a generation gave, and what was counted on the way: None where it could not be seen."""

    ids: Tensor  # (B, prompt + new)
    logits: Tensor | None  # (B, new, V), of the positions that the new tokens were chosen from
    positions: int | None  # that went through the token embedding, a sequence


def generation(who: Subject, model: Model, prompt: Tensor, new_tokens: int, *, use_cache: bool) -> Work:
    """Greedy continuation of `prompt` (B, T) by `new_tokens`."""
    generator = generating(who)

    def call() -> Tensor:
        return generator.generate(model, prompt, new_tokens, temperature=0.0, use_cache=use_cache)

    def answer() -> Generated:
        with _watching(model) as seen:
            ids = call()
        logits = torch.cat(seen.logits, dim=1) if len(seen.logits) == new_tokens else None
        positions = seen.positions // prompt.shape[0] if seen.positions is not None else None
        return Generated(ids, logits, positions)

    return Work(call=call, answer=answer, tokens=prompt.shape[0] * new_tokens)


@dataclasses.dataclass
class _Seen:
    positions: int | None
    logits: list[Tensor]


@contextlib.contextmanager
def _watching(model: Model) -> Iterator[_Seen]:
    """Count the positions that enter the token embedding, and keep each call's last logits."""
    vocabulary = model.size.vocab_size
    embeddings = [
        module
        for module in model.module.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary
    ]
    seen = _Seen(0 if embeddings else None, [])

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.positions = (seen.positions or 0) + arguments[0].numel()

    def keep(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen.logits.append(unpack(output)[0][:, -1:])

    hooks = [embedding.register_forward_pre_hook(count) for embedding in embeddings]
    hooks.append(model.module.register_forward_hook(keep))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def uncached_positions(prompt: int, new_tokens: int) -> int:
    """Every token costs all positions before it: the sum of prompt ... prompt + new_tokens - 1."""
    return sum(range(prompt, prompt + new_tokens))


def cached_positions(prompt: int, new_tokens: int) -> int:
    """The prompt once, then one position a token; the last token is never fed back."""
    return prompt + new_tokens - 1


def attention(kind: str, *, tokens: int, heads: int, head_width: int, dtype: str, device: str) -> Work:
    """Causal attention by itself, on given queries, keys and values (1, H, T, D)."""
    call = attention_call(kind, tokens=tokens, heads=heads, head_width=head_width, dtype=dtype, device=device)
    ledgers: dict[str, Callable[[], int]] = {}
    if device == "cpu":
        sizes = {"tokens": tokens, "heads": heads, "head_width": head_width}
        ledgers["closed form"] = lambda: attention_bytes(kind, **sizes, threads=torch.get_num_threads())
        if tokens == CHILD_LEDGER_TOKENS:
            ledgers["child process"] = lambda: peak_bytes_in_child(
                "benchmarks.arms:attention_call",
                **{**sizes, "kind": kind, "dtype": dtype, "device": device, "threads": torch.get_num_threads()},
            )
    return Work(call=call, answer=call, tokens=tokens, ledgers=ledgers)


# A child costs the seconds of importing torch, so that only one length is counted by the kernel as well.
CHILD_LEDGER_TOKENS = 1024


def attention_call(
    kind: str, *, tokens: int, heads: int, head_width: int, dtype: str, device: str
) -> Callable[[], Tensor]:
    """The call itself; float64 goes head by head, so that the truth fits in memory at every length."""
    shape = (3, 1, heads, tokens, head_width)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    q, k, v = drawn.to(device=device, dtype=getattr(torch, dtype))
    future = torch.ones(tokens, tokens, dtype=torch.bool, device=device).triu(1)

    def naive(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = (q @ k.mT).mul_(1 / math.sqrt(head_width)).masked_fill_(future, -math.inf)  # (..., T, T)
        return scores.softmax(-1) @ v

    def head_by_head() -> Tensor:
        return torch.cat([naive(*(x[:, h : h + 1] for x in (q, k, v))) for h in range(heads)], dim=1)

    calls = {
        "naive": lambda: naive(q, k, v),
        "flash": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True),
        "head by head": head_by_head,
    }
    return torch.no_grad()(calls[kind])


def attention_bytes(kind: str, *, tokens: int, heads: int, head_width: int, threads: int) -> int:
    """The peak of the float32 call in closed form.

    Naive: the scores, their softmax and the output at once. Flash, in torch's CPU kernel
    (FlashAttentionKernel.cpp): the output, a logarithm a row, and one tile a thread.
    """
    output = heads * tokens * head_width
    if kind == "naive":
        return 4 * (2 * heads * tokens * tokens + output)
    query_block = min(tokens, 256 if tokens >= 768 else 64 if tokens >= 192 else 32)
    key_block = min(tokens, 512)
    tile = query_block * (key_block + 2 + head_width)
    return 4 * (output + heads * tokens + threads * tile)


def attention_layer(model: Model) -> Work:
    """The first block's attention with its projections, on a stream (1, T, C) as LayerNorm leaves it."""
    layer = model.component("transformer.h.0.attn")
    like = next(model.module.parameters())
    drawn = torch.randn(1, model.size.context, model.size.width, generator=torch.Generator().manual_seed(0))
    x = drawn.to(like)

    @torch.no_grad()
    def call() -> Tensor:
        output = layer(x)
        return output if isinstance(output, Tensor) else output[0]

    return Work(call=call, answer=call, tokens=model.size.context)


def _adamw(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.module.parameters(), **ADAMW)  # type: ignore[arg-type]


def _autocast(ids: Tensor, dtype: str | None) -> contextlib.AbstractContextManager[Any]:
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(ids.device.type, dtype=getattr(torch, dtype))
