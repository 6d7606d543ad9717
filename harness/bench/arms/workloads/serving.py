"""Work of serving: one plan of requests, by continuous batching and in static batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from harness.bench import costs, serving
from harness.bench.arms.error_bounds import float32_bound
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import ArmSpec, work_kind
from harness.bench.arms.verifiers import REGRET_FACTOR
from harness.bench.arms.workloads.cost_terms import element_bytes
from harness.bench.serving import Arrival, Timeline
from harness.bench.work import Sample, Verification, Work
from harness.core.errors import MissingAbility
from harness.core.sizes import Size
from harness.subjects.protocols import Serves, Subject

LONGEST_PROMPT, MOST_TOKENS = 16, 16
WITNESSED = 2  # requests of a plan that a witness sees, and tokens of each; the operations of further ones are the same


def serving_subject(subject: Subject) -> Serves:
    """Return the subject if it serves requests with an engine. Raises MissingAbility otherwise."""
    if isinstance(subject, Serves):
        return subject
    raise MissingAbility(f"{subject.name} has no ability 'Serves': no engine of continuous batching is beside it")


def _plan(size: Size, requests: int, rate: int) -> list[Arrival]:
    limits = {
        "longest_prompt": min(LONGEST_PROMPT, size.context // 3),
        "most_tokens": min(MOST_TOKENS, size.context // 2),
    }
    return serving.make_plan(requests, rate=rate, **limits)


def _prompts(pool: ModelPool, plan: Sequence[Arrival]) -> list[list[int]]:
    ids, _ = pool.ids(rows=len(plan), length=max(each.prompt for each in plan))
    return [row[: each.prompt].tolist() for row, each in zip(ids, plan, strict=True)]


@work_kind("serve", make_verifier=lambda pool, control, specs, **parameters: _ServingVerifier(pool, **parameters))
def serve(pool: ModelPool, arm: ArmSpec, copy: int, *, requests: int, slots: int, rate: int = 0) -> Work:
    """Serve `requests` greedily in `slots`, arriving at `rate` a minute, or all at the start for a rate of 0.

    The time of a call is that of its steps: the gaps in which nothing is left to do are skipped. The arm's option
    `static` lets a batch enter only when the one before it has ended.
    """
    subject, model = serving_subject(pool.subject_for(arm)), pool.model(arm, copy)
    plan, static = _plan(pool.size, requests, rate), bool(arm.options.get("static"))
    prompts = _prompts(pool, plan)
    longest = max(each.prompt + each.new_tokens for each in plan)
    short = [replace(each, new_tokens=min(WITNESSED, each.new_tokens)) for each in plan[:WITNESSED]]
    runs: list[Timeline] = []

    def run(served: Sequence[Arrival] = plan) -> Timeline:
        engine = subject.new_engine(model, requests=slots, positions=slots * (longest + 4))
        return serving.serve(engine, served, prompts[: len(served)], slots=slots, static=static)

    def call() -> Timeline:
        runs.append(run())
        return runs[-1]

    return Work(
        call=call,
        answer=run,
        sample=lambda found, number: Sample(number, found),  # of one plan: its lengths decide about the work
        tokens=sum(each.new_tokens for each in plan),
        witness_call=lambda: run(short),
        flops=sum(_flops(pool.size, arm, each) for each in plan),
        computes=arm.computes,
        extras=lambda: serving.figures(runs, slots=slots, static=static),
    )


def _flops(size: Size, arm: ArmSpec, each: Arrival) -> float:
    cost = costs.generate(
        size, batch=1, prompt=each.prompt, new_tokens=each.new_tokens, use_cache=True, element_bytes=element_bytes(arm)
    )
    return cost.flops


@dataclass
class _ServingVerifier:
    """Verifies that every request got float64's greedy tokens, as many as it asked for, and counts the steps."""

    pool: ModelPool
    requests: int
    slots: int
    rate: int = 0
    _right: dict[tuple[tuple[int, ...], ...], float] = field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one arm."""
        return self._verify(work.answer())

    def verify_sample(self, name: str, work: Work, sample: Sample) -> Verification:
        """Return the verdict on what one arm served while it was timed."""
        return self._verify(sample.answer)

    def _verify(self, found: Timeline) -> Verification:
        plan = _plan(self.pool.size, self.requests, self.rate)
        for number, (tokens, each) in enumerate(zip(found.tokens, plan, strict=True)):
            if len(tokens) != each.new_tokens:
                counted = f"request {number} got {len(tokens)} tokens, and asked for {each.new_tokens}"
                return Verification("fail", f"{counted}; `pytest verifications/ -m batching` finds why")
        key = tuple(map(tuple, found.tokens))
        if key not in self._right:
            self._right[key] = self._regret(plan, found.tokens)
        regret, allowed = self._right[key], REGRET_FACTOR * float32_bound(self.pool.size)
        if not regret <= allowed:
            message = f"a token is not the likeliest: float64 prefers another, {regret:.1e} above it"
            return Verification("fail", f"{message}; `pytest verifications/ -m batching` finds why")
        lengths = [each.new_tokens for each in plan]
        static = serving.ideal_steps(found.seen, lengths, slots=self.slots, static=True)
        ideal = serving.ideal_steps(found.seen, lengths, slots=self.slots, static=False)
        steps = f"{found.steps} steps; {ideal} by closed form if continuous, {static} if static"
        return Verification(
            "pass", f"float64's greedy tokens for {len(plan)} requests; {steps}", {"steps": found.steps}
        )

    @torch.no_grad()
    def _regret(self, plan: Sequence[Arrival], tokens: Sequence[Sequence[int]]) -> float:
        """Return how far the float64 logit of the worst token is below the best, over the RMS of all logits."""
        prompts = _prompts(self.pool, plan)
        rows = [[*prompt, *own] for prompt, own in zip(prompts, tokens, strict=True)]
        ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)  # padded at the right: never looked at
        for number, whole in enumerate(rows):
            ids[number, : len(whole)] = torch.tensor(whole)
        logits = self.pool.oracle().logits(ids.to(self.pool.device))
        worst, squares = 0.0, logits.square().mean().sqrt()
        for row, prompt, own in zip(logits, prompts, tokens, strict=True):  # (T, V)
            worst = max(worst, float(_behind(row[len(prompt) - 1 :], own) / squares))
        return worst


def _behind(logits: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return the largest distance of a token's logit from the best of its position, for logits (T, V)."""
    logits = logits[: len(tokens)]
    chosen = torch.tensor(tokens, device=logits.device)
    return (logits.amax(-1) - logits.gather(-1, chosen[:, None])[:, 0]).max()
