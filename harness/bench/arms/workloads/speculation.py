"""Work of speculative decoding: a prompt continued greedily, by the target alone and with drafts."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from harness.bench import costs
from harness.bench.arms.error_bounds import float32_bound
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, Verifier, work_kind
from harness.bench.arms.verifiers import Generated, GenerationVerifier
from harness.bench.arms.workloads.cost_terms import element_bytes
from harness.bench.arms.workloads.decoding import caching_subject
from harness.bench.arms.workloads.generation import WITNESSED_TOKENS, generating_subject, observe_calls
from harness.bench.work import Sample, Work
from harness.core.errors import MissingAbility
from harness.core.sizes import Size
from harness.oracle.probe_weights import State, state
from harness.oracle.speculation import agreement, greedy_rounds, speed_up, tokens_a_call
from harness.subjects.model import Model
from harness.subjects.protocols import Speculates, Subject

DRAFT_LAYERS = 1  # of the draft model, and of the early exit
TIMED_CALLS = 8  # of the draft and of the target, for the ratio of their costs
# By lookahead: weights and arms do not change them.
_COST_RATIOS: weakref.WeakKeyDictionary[ModelPool, dict[int, tuple[float, float]]] = weakref.WeakKeyDictionary()


def damped(published: State, percent: int) -> State:
    """Return weights whose layers behind the first DRAFT_LAYERS add only `percent` of what they would.

    Without trained weights no small model agrees with a large one. These weights make one: at 0 the first layers alone
    give the target's logits, at 100 they say next to nothing of them, and both models do all of their work.
    """
    first = tuple(f"transformer.h.{layer}." for layer in range(DRAFT_LAYERS))
    return {
        name: tensor * (percent / 100) if ".c_proj." in name and not name.startswith(first) else tensor
        for name, tensor in published.items()
    }


def draft_size(size: Size) -> Size:
    """Return the size of the draft model: the target's, with DRAFT_LAYERS layers."""
    return replace(size, name=f"{size.name}, {DRAFT_LAYERS} layer", layers=DRAFT_LAYERS)


def draft_state(published: State) -> State:
    """Return the weights of the draft model: the target's embeddings, first layers, final norm and head."""
    kept = tuple(f"transformer.h.{layer}." for layer in range(DRAFT_LAYERS))
    return {name: tensor for name, tensor in published.items() if ".h." not in name or name.startswith(kept)}


def _make_verifier(
    pool: ModelPool,
    control: str,
    arm_specs: Mapping[str, ArmSpec],
    *,
    lookahead: int,
    prompt: int,
    new_tokens: int,
    damping: int = 0,
) -> Verifier:
    @torch.no_grad()
    def oracle_logits(ids: Tensor) -> Tensor:
        oracle = pool.oracle()
        return oracle.load(damped(state(pool.size.name, "probe"), damping)).logits(ids)

    return GenerationVerifier(
        oracle_logits,
        control=control,
        bound=float32_bound(pool.size),
        positions=dict.fromkeys(arm_specs, 0),  # how many are processed depends on the drafts, and is not counted
        new_tokens=new_tokens,
        prompts=lambda number: pool.ids(rows=1, length=prompt)[0],
    )


@work_kind("speculate", make_verifier=_make_verifier)
def speculate(
    pool: ModelPool, arm: ArmSpec, copy: int, *, lookahead: int, prompt: int, new_tokens: int, damping: int = 0
) -> Work:
    """Continue a prompt greedily by `new_tokens`, with up to `lookahead` drafts a round.

    `damping` is the percentage that the target's layers behind the draft's still add (see `damped`): the smaller, the
    more drafts are accepted. Raises MissingAbility if the subject does not decode speculatively, or not with the draft.
    """
    subject, model = pool.subject_for(arm), pool.model(arm, copy)
    if model.weight_map is None:
        raise MissingAbility(f"{subject.name} has no weight map, so that no draft can be made that agrees with it")
    weights = damped(state(pool.size.name, "probe"), damping)
    model.load(weights)
    ids, _ = pool.ids(rows=1, length=prompt)
    kind = arm.options.get("draft")
    draft_model = _draft_model(pool, subject, weights) if kind in ("model", "early-exit") else None
    continue_by = _continued(subject, model, draft_model if kind == "model" else kind, ids, lookahead)
    observed: list[tuple[Tensor, int]] = []  # the text, and the calls of the target; of one prompt always the same

    def answer() -> Generated:
        with observe_calls(model) as calls:
            text = continue_by(new_tokens)
        observed[:] = [(text, len(calls.logits))]
        return Generated(text, None, None)

    def extras() -> Mapping[str, float]:
        if kind is None:
            return {}
        if not observed:
            answer()
        text, calls = observed[0]
        found = {"tokens_per_target_call": new_tokens / calls} if calls else {}
        if draft_model is None:
            return found
        rounds = greedy_rounds(agreement(draft_model, text, prompt), lookahead)
        of_pool = _COST_RATIOS.setdefault(pool, {})
        if lookahead not in of_pool:
            of_pool[lookahead] = _cost_ratios(subject, model, draft_model, ids, lookahead)
        ratios = of_pool[lookahead]
        alpha = rounds.acceptance
        if calls == rounds.target_calls > 1:  # the rounds that were counted: the last one is cut
            found = {"tokens_per_target_call": rounds.tokens_a_call}
        return {
            **found,
            "acceptance_share": alpha,
            "tokens_per_target_call_closed_form": tokens_a_call(alpha, lookahead),
            **{f"acceptance_at_{n + 1}_share": a / j for n, (a, j) in
               enumerate(zip(rounds.accepted, rounds.judged, strict=True)) if j},
            "cost_ratio": ratios[0],
            "verification_ratio": ratios[1],
            "speed_up_closed_form": speed_up(alpha, lookahead, ratios[0]),
            "speed_up_with_verification": speed_up(alpha, lookahead, *ratios),
        }  # fmt: skip

    cost = costs.generate(
        pool.size, batch=1, prompt=prompt, new_tokens=new_tokens, use_cache=True, element_bytes=element_bytes(arm)
    )
    return Work(
        call=lambda: continue_by(new_tokens),
        answer=answer,
        sample=lambda found, number: Sample(number, found.clone()),  # of one prompt: the text decides about the work
        tokens=new_tokens,
        witness_call=(lambda: continue_by(WITNESSED_TOKENS)) if new_tokens > WITNESSED_TOKENS else None,
        # The closed form is that of the target alone: how much more a draft computes depends on the text.
        flops=cost.flops if kind is None else None,
        moved_bytes=cost.moved_bytes if kind is None else None,
        passes=new_tokens,
        computes=arm.computes,
        extras=extras,
    )


def _draft_model(pool: ModelPool, subject: Subject, weights: State) -> Model:
    """Return a draft with the target's first layers, as a model of its own."""
    model = subject.build(draft_size(pool.size), seed=0, device=pool.device)
    return model.load(draft_state(weights))


def _continued(
    subject: Subject, model: Model, draft: Model | str | None, ids: Tensor, lookahead: int
) -> Callable[[int], Tensor]:
    """Return what continues ids (1, T) by so many tokens, cut to that number."""
    if draft is None:
        generator = generating_subject(subject)
        return lambda count: generator.generate(model, ids, count, temperature=0.0, use_cache=True)
    if not isinstance(subject, Speculates):
        raise MissingAbility(f"{subject.name} has no ability 'Speculates': it does not decode speculatively")
    if isinstance(draft, str) and draft not in subject.drafts(model):
        raise MissingAbility(f"{subject.name} has no speculative decoding with the draft '{draft}'")
    length = ids.shape[1]

    def by_speculation(count: int) -> Tensor:
        answer = subject.speculate(model, draft, ids, count, lookahead=lookahead, temperature=0.0)
        return answer[:, : length + count]

    return by_speculation


@torch.no_grad()
def _cost_ratios(subject: Subject, target: Model, draft: Model, ids: Tensor, lookahead: int) -> tuple[float, float]:
    """Return the time of a draft's step, and of the target's call for all drafts, over one step of the target.

    The best of TIMED_CALLS each, in turns, with a cache, behind the prompt. Raises MissingAbility without a cache.
    """
    caches = caching_subject(subject)
    one, several = ids[:, :1], ids[:, :1].repeat(1, lookahead + 1)
    calls = {"target": (target, one), "draft": (draft, one), "verification": (target, several)}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(TIMED_CALLS):
        for name, (model, tokens) in calls.items():
            cache = caches.new_cache(model, 1)
            caches.step(model, ids, cache)
            started = time.perf_counter()
            caches.step(model, tokens, cache)
            seconds[name].append(time.perf_counter() - started)
    step = min(seconds["target"])
    return min(seconds["draft"]) / step, min(seconds["verification"]) / step
