"""Work of generation: a prompt continued greedily, with a cache and without, and its first token by itself."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench import costs
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.models import element_bytes
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.truth import Generated, SameTokens, float32_bound
from harness.bench.comparison import Work
from harness.core.errors import MissingAbility
from harness.subjects.forward_call import unpack
from harness.subjects.model import Generates, Model, Subject

SEEN_TOKENS = 2  # what the witness sees of a generation: more is the same again


def _judge(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, prompt: int, new_tokens: int, batch: int = 1
) -> Verifier:
    @torch.no_grad()
    def truth(ids: Tensor) -> Tensor:
        return pool.truth().logits(ids)

    counts = {True: cached_positions(prompt, new_tokens), False: uncached_positions(prompt, new_tokens)}
    return SameTokens(
        truth,
        control=control,
        bound=float32_bound(pool.size),
        positions={name: counts[way.options.get("use_cache", True)] for name, way in arm_specs.items()},
        new_tokens=new_tokens,
    )


@work_kind("generate", judge=_judge)
def generate(pool: ModelPool, way: ArmSpec, copy: int, *, prompt: int, new_tokens: int, batch: int = 1) -> Work:
    """Greedy continuation of `batch` prompts of `prompt` tokens by `new_tokens`; 1 is the time to the first token."""
    who, model = pool.who(way), pool.model(way, copy)
    ids, _ = pool.ids(rows=batch, length=prompt)
    generator, use_cache = generating(who), way.options.get("use_cache", True)

    def continued(count: int) -> Tensor:
        return generator.generate(model, ids, count, temperature=0.0, use_cache=use_cache)

    def answer() -> Generated:
        with_logits = getattr(who, "generate_with_logits", None)
        if with_logits is not None:
            found, chosen_from = with_logits(model, ids, new_tokens)
            return Generated(found, chosen_from, None)
        with watching(model) as seen:
            found = continued(new_tokens)
        logits = torch.cat(seen.logits, dim=1) if len(seen.logits) == new_tokens else None
        return Generated(found, logits, seen.positions // batch if seen.positions is not None else None)

    cost = costs.generate(
        pool.size,
        batch=batch,
        prompt=prompt,
        new_tokens=new_tokens,
        use_cache=use_cache,
        element_bytes=element_bytes(way),
    )
    return Work(
        call=lambda: continued(new_tokens),
        answer=answer,
        # Of a first token the prompt is what is worked through; of a longer answer the new tokens are what one gets.
        tokens=batch * (prompt if new_tokens == 1 else new_tokens),
        seen=(lambda: continued(SEEN_TOKENS)) if new_tokens > SEEN_TOKENS else None,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        computes=way.computes,
    )


def generating(who: Subject) -> Generates:
    """`who`, if it continues a prompt; MissingAbility otherwise."""
    if isinstance(who, Generates):
        return who
    raise MissingAbility(f"{who.name} has no ability 'Generates': it does not continue a prompt")


@dataclass
class _Seen:
    positions: int | None
    logits: list[Tensor]


@contextlib.contextmanager
def watching(model: Model) -> Iterator[_Seen]:
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
