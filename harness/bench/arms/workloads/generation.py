"""Work of generation: a prompt continued greedily, with a cache and without, and its first token alone."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from harness.bench import costs
from harness.bench.arms.error_bounds import float32_bound, relative_error
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.stored_linears import ROUNDED
from harness.bench.arms.verifiers import Generated, GenerationVerifier
from harness.bench.arms.workloads.cost_terms import element_bytes, weight_bytes
from harness.bench.tensor_bytes import weight_figures
from harness.bench.work import Sample, Work
from harness.core.errors import MissingAbility
from harness.subjects.forward_answer import unpack
from harness.subjects.model import Model
from harness.subjects.protocols import Generates, Subject

WITNESSED_TOKENS = 2  # of a generation; the operations of further tokens are the same


def _make_verifier(
    pool: ModelPool, control: str, arm_specs: Mapping[str, ArmSpec], *, prompt: int, new_tokens: int, batch: int = 1
) -> Verifier:
    @torch.no_grad()
    def oracle_logits(ids: Tensor) -> Tensor:
        return pool.oracle().logits(ids)

    @torch.no_grad()
    def stored_logits(arm: ArmSpec, ids: Tensor) -> tuple[Tensor, float]:
        expected, form = oracle_logits(ids), str(arm.stored_as)
        computes = arm.options.get("activations", arm.computes)
        rounded = pool.oracle_storing(form, getattr(torch, arm.dtype)).logits(ids)
        if computes == form:  # activations are rounded to as many steps as the weights
            return rounded, relative_error(rounded, expected)
        return rounded, relative_error(pool.oracle(stored_in=getattr(torch, computes)).logits(ids), expected)

    stored = {
        name: functools.partial(stored_logits, arm) for name, arm in arm_specs.items() if arm.stored_as in ROUNDED
    }
    counts = {True: cached_positions(prompt, new_tokens), False: uncached_positions(prompt, new_tokens)}
    return GenerationVerifier(
        oracle_logits,
        control=control,
        bound=float32_bound(pool.size),
        positions={name: counts[arm.options.get("use_cache", True)] for name, arm in arm_specs.items()},
        new_tokens=new_tokens,
        prompts=lambda number: pool.ids(rows=batch, length=prompt, number=number)[0],
        stored=stored,
    )


@work_kind("generate", make_verifier=_make_verifier)
def generate(pool: ModelPool, arm: ArmSpec, copy: int, *, prompt: int, new_tokens: int, batch: int = 1) -> Work:
    """Continue `batch` prompts of `prompt` tokens greedily by `new_tokens`; 1 gives the time to the first token."""
    subject, model = pool.subject_for(arm), pool.model(arm, copy)
    ids, _ = pool.ids(rows=batch, length=prompt)
    generator, use_cache = generating_subject(subject), arm.options.get("use_cache", True)

    def generate_tokens(count: int) -> Tensor:
        return generator.generate(model, ids, count, temperature=0.0, use_cache=use_cache)

    def answer() -> Generated:
        with_logits = getattr(subject, "generate_with_logits", None)
        if with_logits is not None:
            found, chosen_from = with_logits(model, ids, new_tokens)
            return Generated(found, chosen_from, None)
        with observe_calls(model) as calls:
            found = generate_tokens(new_tokens)
        logits = torch.cat(calls.logits, dim=1) if len(calls.logits) == new_tokens else None
        return Generated(found, logits, calls.positions // batch if calls.positions is not None else None)

    cost = costs.generate(
        pool.size,
        batch=batch,
        prompt=prompt,
        new_tokens=new_tokens,
        use_cache=use_cache,
        element_bytes=element_bytes(arm),
        weight_bytes=weight_bytes(arm),
    )
    return Work(
        call=lambda: generate_tokens(new_tokens),
        answer=answer,
        use_input=functools.partial(pool.use_ids, ids),
        sample=lambda found, number: Sample(number, found.clone()),
        # For a first token, the prompt is the work. For a longer answer, the new tokens are what the user gets.
        tokens=batch * (prompt if new_tokens == 1 else new_tokens),
        witness_call=(lambda: generate_tokens(WITNESSED_TOKENS)) if new_tokens > WITNESSED_TOKENS else None,
        flops=cost.flops,
        moved_bytes=cost.moved_bytes,
        passes=new_tokens,
        computes=arm.computes,
        extras=lambda: weight_figures(model.module),
    )


def generating_subject(subject: Subject) -> Generates:
    """Return the subject if it continues a prompt. Raises MissingAbility otherwise."""
    if isinstance(subject, Generates):
        return subject
    raise MissingAbility(f"{subject.name} has no ability 'Generates': it does not continue a prompt")


@dataclass
class _Calls:
    """The positions that a model processed (None if they cannot be counted), and the last logits of each call."""

    positions: int | None
    logits: list[Tensor]


@contextlib.contextmanager
def observe_calls(model: Model) -> Iterator[_Calls]:
    """Count the positions that enter the token embedding, and collect each call's last logits, inside the block.

    A model may look its tokens up without calling a module for it: then the positions cannot be counted.
    """
    vocabulary = model.size.vocab_size
    embeddings = [
        module
        for module in model.module.modules()
        if isinstance(module, nn.Embedding) and module.num_embeddings == vocabulary
    ]
    calls = _Calls(None, [])

    def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        calls.positions = (calls.positions or 0) + arguments[0].numel()

    def collect(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        calls.logits.append(unpack(output)[0][:, -1:])

    hooks = [embedding.register_forward_pre_hook(count) for embedding in embeddings]
    hooks.append(model.module.register_forward_hook(collect))
    try:
        yield calls
    finally:
        for hook in hooks:
            hook.remove()


def uncached_positions(prompt: int, new_tokens: int) -> int:
    """Return the sum of prompt ... prompt + new_tokens - 1: each token processes all positions before it."""
    return sum(range(prompt, prompt + new_tokens))


def cached_positions(prompt: int, new_tokens: int) -> int:
    """Return prompt + new_tokens - 1: the prompt once, then one position a token, without the last token."""
    return prompt + new_tokens - 1
