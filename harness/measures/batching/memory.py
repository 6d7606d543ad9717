"""Measures of an engine's memory: what is read of it, and whether it comes back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import torch
from torch import Tensor

from harness.core.errors import MissingAbility, SubjectError
from harness.core.seeds import seeded
from harness.core.sizes import SIZES
from harness.measures.batching.company import place, reading
from harness.measures.batching.plan import POSITIONS, REQUESTS, Planned, greedy_alone, serve, usual_plan
from harness.measures.cached_model import cached_model
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.model import Model
from harness.subjects.protocols import Serves, ServingEngine
from harness.suites.measure_registry import Reading, measure

ROUNDS = 4  # of a plan, after which memory that is not given back is used up
LOUD = 30.0  # of the poison: some ten times a key's or a value's own size, so that any weight above 0 shows


@measure
def unused_memory_read(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return how the memory is read that no living request has written.

    An engine serves the plan once. Then all memory that it has written is filled, first with large random numbers,
    then with NaN, and it serves the plan again: the tokens must be the same.

    "changes the answer": large numbers do. "read with weight 0": only NaN does, since 0 · NaN is NaN, as where a mask
    is added to the scores of a padded batch. "never read": neither does.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = usual_plan(size)
    changed: dict[str, list[bool]] = {}
    generator = torch.Generator().manual_seed(seeded(3))
    fills: dict[str, Callable[[Tensor], object]] = {
        "large": lambda t: t.copy_(LOUD * torch.randn(t.shape, generator=generator)),
        "nan": lambda t: t.fill_(math.nan),
    }
    for kind, fill in fills.items():
        engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
        before = [tensor.clone() for tensor in engine.memory()]
        first = serve(engine, model, plan)
        _fill_written(engine.memory(), before, fill)
        again = serve(engine, model, plan)
        changed[kind] = [a != b for a, b in zip(first.tokens, again.tokens, strict=True)]
    found, why = {}, {}
    for number in range(len(plan)):
        name = place(plan, number)
        found[name] = "read with weight 0" if changed["nan"][number] else "never read"
        if changed["large"][number]:
            found[name] = "changes the answer"
            why[name] = "memory that no living request has written changes its tokens"
    return reading(found, why, engine)


def _fill_written(memory: list[Tensor], before: list[Tensor], fill: Callable[[Tensor], object]) -> None:
    """Fill the tensors that were written, or that are new: of three axes or more, as keys and values are."""
    for number, tensor in enumerate(memory):
        was = before[number] if len(before) == len(memory) else None
        written = was is None or was.shape != tensor.shape or not torch.equal(was.nan_to_num(), tensor.nan_to_num())
        if written and tensor.ndim >= 3:
            fill(tensor)


@measure
def memory_kept(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return what an engine keeps of requests that have ended, after several rounds of them.

    "steps more": the steps until a plan that fills the memory has been served, beyond those of a new engine. Requests
    that cannot start, since pages or slots are lost, count as all the steps of the plan. "bytes more": the tensors that
    the engine keeps, beyond those after the first round.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = usual_plan(size)
    engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
    first = serve(engine, model, plan)
    bytes_after_first = _bytes(engine)
    for _ in range(ROUNDS - 1):
        last = serve(engine, model, plan)
    started = [sum(bool(steps) for steps in run.steps) for run in (first, last)]
    ends = [max((steps[-1] for steps in run.steps if steps), default=0) for run in (first, last)]
    lost = started[1] < started[0]
    found = {
        "requests that no longer start": max(0, started[0] - started[1]),
        "steps more": max(0, ends[1] - ends[0]) if not lost else 0,
        "bytes more": max(0, _bytes(engine) - bytes_after_first),
    }
    why = {name: f"after {ROUNDS} rounds of {len(plan)} requests" for name, value in found.items() if value}
    return reading(found, why, engine)


def _bytes(engine: ServingEngine) -> int:
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in engine.memory()}.values())


@measure
def requests_too_long(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return what happens to a request that can never fit, between two that do.

    Right are: a refusal when it is submitted, and an answer with the right tokens, all of them or up to the context.
    Raises SubjectError if the two get other tokens, or an error, without it too.
    """
    model = cached_model(subject, size, weights, "float64")
    context = model.size.context
    before, behind = usual_plan(size)[0], usual_plan(size)[2]
    found, why = {}, {}
    for name, prompt, new, positions in (
        ("longer than the context", context - 4, 12, 3 * context),
        ("longer than the memory", 14, 10, 16),
    ):
        engine = subject.new_engine(model, requests=REQUESTS, positions=positions)
        found[name] = _between(engine, model, before, Planned(_ids(size, prompt), new, 0), behind)
        if found[name] not in ("refused", "right tokens"):
            _require_without(subject.new_engine(model, requests=REQUESTS, positions=positions), model, before, behind)
            why[name] = str(found[name])
    return reading(found, why, engine, "submit")


def _require_without(engine: ServingEngine, model: Model, before: Planned, behind: Planned) -> None:
    """Serve two requests that fit. Raises what the engine raises, or SubjectError if their tokens are wrong."""
    plan = [dataclasses.replace(each, arrives=0) for each in (before, behind)]
    if serve(engine, model, plan).tokens != [greedy_alone(model, each.prompt, each.new_tokens) for each in plan]:
        raise SubjectError("requests that fit get other tokens than alone; see tokens-in-company")


def _between(engine: ServingEngine, model: Model, before: Planned, long: Planned, behind: Planned) -> str:
    numbers = [engine.submit(before.prompt, before.new_tokens, **before.settings)]
    refused = False
    try:
        numbers.append(engine.submit(long.prompt, long.new_tokens, **long.settings))
    except MissingAbility:
        raise
    except Exception:
        refused = True
    numbers.append(engine.submit(behind.prompt, behind.new_tokens, **behind.settings))
    try:
        for _ in range(len(long.prompt) + long.new_tokens + before.new_tokens + behind.new_tokens + 10):
            engine.step()
    except Exception as error:
        answered = [engine.tokens(n) for n in (numbers[0], numbers[-1])]
        if answered != [greedy_alone(model, each.prompt, each.new_tokens) for each in (before, behind)]:
            return f"a step raises {type(error).__name__}, and its neighbours get no more tokens"
    for number, each, who in ((numbers[0], before, "that came before"), (numbers[-1], behind, "behind")):
        if engine.tokens(number) != greedy_alone(model, each.prompt, each.new_tokens):
            return f"the request {who} it does not get its tokens"
    if refused:
        return "refused"
    tokens = engine.tokens(numbers[1])
    room = model.size.context - len(long.prompt)
    expected = greedy_alone(model, long.prompt, long.new_tokens)
    if tokens == expected or (tokens == expected[: len(tokens)] and len(tokens) >= room):
        return "right tokens"
    return f"it is accepted, and gets {len(tokens)} of {long.new_tokens} tokens" + (
        "" if tokens == expected[: len(tokens)] else ", other ones than alone"
    )


def _ids(size: str, length: int) -> tuple[int, ...]:
    return tuple(batch(SIZES[size], "random", rows=2, length=length, seed=9)[0][1].tolist())
