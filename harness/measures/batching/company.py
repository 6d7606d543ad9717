"""Measures of requests in company: the tokens and logits of each against those that it gets alone."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor

from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.measures.batching.explanations import Evidence, explain_logits, explain_tokens
from harness.measures.batching.plan import (
    POSITIONS,
    REQUESTS,
    Planned,
    Served,
    greedy_alone,
    logits_alone,
    serve,
    usual_plan,
)
from harness.measures.cached_model import cached_model
from harness.oracle import noise_verdict
from harness.oracle.probe_weights import Weights, state
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Serves, ServingEngine
from harness.suites.measure_registry import Reading, measure

Arrivals = Literal["in the middle", "together", "in reverse"]

# Settings of the sampled plan, one for each request: two have the same seed, two are greedy beside hot neighbours, and
# one is greedy by its top-k whatever its temperature. With probe weights one token has nearly all probability at 1.
LASTS = (4, 9, 12, 7, 12, 4)  # new tokens of the sampled plan
SAMPLED: tuple[Mapping[str, Any], ...] = (
    {"temperature": 6.0, "seed": 5},
    {"temperature": 0.0},
    {"temperature": 9.0, "top_k": 1, "seed": 7},
    {"temperature": 20.0, "top_k": 20, "seed": 6},
    {"temperature": 0.0},
    {"temperature": 40.0, "top_p": 0.9, "seed": 5},
)


@measure
def tokens_in_company(
    subject: Serves, *, size: str, arrivals: Arrivals = "in the middle", weights: Weights = "probe"
) -> Reading:
    """Count the greedy tokens of each request that are not those of its own full forward passes, missing ones too.

    In float64, where no two logits are within rounding. The requests have other lengths and arrive while others are in
    the middle, all at once, or with the last one first.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = _arriving(usual_plan(size), arrivals)
    engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
    seen = Evidence(subject, model, plan, serve(engine, model, plan, watch=True), size, weights)
    expected = [greedy_alone(model, each.prompt, each.new_tokens) for each in plan]
    wrong = {place(plan, n): _differing(seen.served.tokens[n], right) for n, right in enumerate(expected)}
    why = {place(plan, n): explain_tokens(seen, n, right) for n, right in enumerate(expected)}
    return reading(wrong, why, engine)


@measure
def sampled_in_company(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Count the sampled tokens of each request that are not those that it gets alone, from an engine of its own.

    Each request has a seed and settings of its own. Where it cannot have a seed, those are judged that are greedy by
    their settings. Raises MissingAbility if a request cannot have a temperature.
    """
    model = cached_model(subject, size, weights, "float64")
    engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
    if "temperature" not in engine.settings:
        raise MissingAbility("a request has no temperature of its own: all are served alike")
    settings = [{key: value for key, value in each.items() if key in engine.settings} for each in SAMPLED]
    # The first request ends while those behind it go on: an engine moves them up, and their settings with them.
    plan = [
        dataclasses.replace(e, new_tokens=n) for e, n in zip(usual_plan(size, settings=settings), LASTS, strict=True)
    ]
    served = serve(engine, model, plan)
    wrong, why = {}, {}
    for number, each in enumerate(plan):
        greedy = settings[number]["temperature"] == 0.0 or settings[number].get("top_k") == 1
        if greedy:
            alone = greedy_alone(model, each.prompt, each.new_tokens)
        elif "seed" in engine.settings:
            own = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
            (alone,) = serve(own, model, [dataclasses.replace(each, arrives=0)]).tokens
        else:
            continue
        name = place(plan, number)
        wrong[name] = _differing(served.tokens[number], alone)
        said = "it is greedy by its settings, and gets other tokens" if greedy else "with its seed it gets other tokens"
        why[name] = f"{said} in company than alone" if wrong[name] else ""
    return reading(wrong, why, engine)


@measure
def logits_in_company(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return the noise verdict on the logits of each request's tokens, against one pass over the request alone.

    Which row of a step belongs to which request is the engine's affair: the row that is nearest to the expected one
    counts. Raises MissingAbility if the logits cannot be seen, since neither the model nor its head is called.
    """
    plan = usual_plan(size)
    exact = cached_model(subject, size, weights, "float64")
    coarse = build_with_weights(subject, SIZES[size], state(size, weights))
    engine, served = _watched(subject, exact, plan)
    _, served32 = _watched(subject, coarse, plan)
    expected, expected32 = (
        # After the tokens that each run made itself: in float32 another one may be the likeliest.
        [logits_alone(exact, each.prompt, tokens) for each, tokens in zip(plan, run.tokens, strict=True)]
        for run in (served, served32)
    )
    own32 = [logits_alone(coarse, each.prompt, tokens) for each, tokens in zip(plan, served32.tokens, strict=True)]
    floor = max(noise_verdict.distance(own, right) for own, right in zip(own32, expected32, strict=True))
    differences = [
        noise_verdict.Difference(
            place(plan, n),
            scale=noise_verdict.max_abs(expected[n]),
            float32=_nearest(expected32[n], served32, n),
            float64=_nearest(expected[n], served, n),
            floor32=floor,
        )
        for n in range(len(plan))
    ]
    seen = Evidence(subject, exact, plan, served, size, weights)
    little = "its logits are off by more than rounding in float64, and less than any token shows"
    why = {
        each.where: explain_logits(seen, n) or little
        for n, each in enumerate(differences)
        if each.verdict == "different"
    }
    found = noise_verdict.reading(differences)
    assert isinstance(found.value, Mapping)
    return reading(found.value, why, engine, **found.details)


def _watched(subject: Serves, model: Model, plan: list[Planned]) -> tuple[ServingEngine, Served]:
    """Serve the plan and return the logits of each step too. Raises MissingAbility if none are seen."""
    engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS)
    served = serve(engine, model, plan, watch=True)
    if not any(len(rows) for rows in served.rows):
        raise MissingAbility("neither the model nor its head is called as a module: its logits cannot be seen")
    if missing := [number for number, tokens in enumerate(served.tokens) if not tokens]:
        raise SubjectError(f"request {missing[0]} gets no token")
    return engine, served


def _nearest(expected: Tensor, served: Served, number: int) -> float:
    """Return the largest distance of an expected row of logits from the nearest row of its step; NaN without rows."""
    worst = 0.0
    for row, step in zip(expected, served.steps[number], strict=True):
        gaps = (served.rows[step] - row).abs().amax(-1)  # (N, V) - (V) -> (N)
        finite = gaps[gaps.isfinite()]
        worst = noise_verdict.maximum(worst, float(finite.min()) if len(finite) else math.nan)
    return worst


def _arriving(plan: list[Planned], arrivals: Arrivals) -> list[Planned]:
    if arrivals == "together":
        return [dataclasses.replace(each, arrives=0) for each in plan]
    if arrivals == "in reverse":
        times = [each.arrives for each in plan]
        return [dataclasses.replace(each, arrives=at) for each, at in zip(plan[::-1], times, strict=True)]
    return plan


def place(plan: list[Planned], number: int) -> str:
    """Return `request 2 (prompt 5, new 1)`."""
    each = plan[number]
    return f"request {number} (prompt {len(each.prompt)}, new {each.new_tokens})"


def _differing(found: list[int], expected: list[int]) -> int:
    """Return how many tokens differ, those that are missing or too many included."""
    same = sum(a == b for a, b in zip(found, expected, strict=False))
    return max(len(found), len(expected)) - same


def reading(
    value: Mapping[str, Any], why: Mapping[str, str], engine: ServingEngine, role: str = "step", **details: Any
) -> Reading:
    """Return a reading with an explanation for each place, and the line of the engine's method to look at."""
    first = next(((name, said) for name, said in why.items() if said), None)
    hint = {"hint": f"{first[0]}: {first[1]}"} if first else {}
    line = {"line": engine.lines[role]} if first and role in engine.lines else {}
    return Reading(value, details={**details, "answers": {n: said for n, said in why.items() if said}, **hint, **line})
