"""Serving measured: a plan of arrivals on a virtual clock, how often each request got a token, and the ideal."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from harness.bench.statistics import median


@dataclass(frozen=True)
class Arrival:
    """A request of a plan: when it arrives, in seconds, the tokens of its prompt, and how many it asks for."""

    at: float
    prompt: int
    new_tokens: int


class Serving(Protocol):
    """An engine as it is measured: see `harness.subjects.protocols.ServingEngine`."""

    def submit(self, ids: Sequence[int], new_tokens: int, *, temperature: float) -> int:
        """Queue a prompt and return its number."""
        ...

    def step(self) -> None:
        """Do one step."""
        ...

    def tokens(self, number: int) -> list[int]:
        """Return the new tokens of a request so far."""
        ...


@dataclass
class Timeline:
    """What happened to a plan: times are on the virtual clock, in seconds; steps are counted from 0.

    arrivals: of each request, as planned.
    seen: the step before which each request had arrived.
    times: of each request's tokens.
    tokens: of each request.
    """

    arrivals: list[float]
    seen: list[int] = field(default_factory=list)
    times: list[list[float]] = field(default_factory=list)
    tokens: list[list[int]] = field(default_factory=list)
    steps: int = 0

    def first_token_seconds(self) -> list[float]:
        """Return how long each request waited for its first token."""
        return [times[0] - at for times, at in zip(self.times, self.arrivals, strict=True)]

    def between_tokens_seconds(self) -> list[float]:
        """Return the times between one token and the next, of all requests."""
        return [later - sooner for times in self.times for sooner, later in itertools.pairwise(times)]

    def tokens_per_second(self) -> float:
        """Return the tokens of all requests over the time from the first arrival to the last token."""
        return sum(map(len, self.tokens)) / (max(times[-1] for times in self.times) - min(self.arrivals))


def make_plan(requests: int, *, rate: int, longest_prompt: int, most_tokens: int, seed: int = 0) -> list[Arrival]:
    """Return requests that arrive as a Poisson process of `rate` a minute, or all at the start for a rate of 0.

    Prompts are uniform in 1 to `longest_prompt`. Answers are exponential with a mean of a third of `most_tokens`, cut
    off there: most are short and a few are long, as those of people are.
    """
    drawn = random.Random(seed)
    at, plan = 0.0, []
    for _ in range(requests):
        at += drawn.expovariate(rate / 60) if rate else 0.0
        new = min(most_tokens, 1 + int(drawn.expovariate(3 / most_tokens)))
        plan.append(Arrival(at, drawn.randint(1, longest_prompt), new))
    first = plan[0].at
    return [Arrival(each.at - first, each.prompt, each.new_tokens) for each in plan]


def serve(
    engine: Serving,
    plan: Sequence[Arrival],
    prompts: Sequence[Sequence[int]],
    *,
    slots: int,
    static: bool,
    clock: Callable[[], float] = time.perf_counter,
) -> Timeline:
    """Serve a plan greedily and return what happened.

    The virtual clock moves by the measured time of each step, and jumps to the next arrival where nothing is left to
    do: waiting costs no time of the run, and the latencies are those of a server that does nothing else. With `static`,
    a batch of at most `slots` requests enters only when the one before it has ended; slots of answers that have ended
    stay empty, which is kinder than to compute padding there. An engine that leaves a request without its tokens is
    given up after as many steps as the plan has tokens, prompts included.
    """
    found = Timeline([each.at for each in plan], [-1] * len(plan), [[] for _ in plan], [[] for _ in plan])
    numbers: dict[int, int] = {}
    now = 0.0
    most = sum(each.prompt + each.new_tokens for each in plan)  # steps of an engine that computes one token in each
    while found.steps < most and any(
        len(tokens) < each.new_tokens for tokens, each in zip(found.tokens, plan, strict=True)
    ):
        live = [at for at in numbers if len(found.tokens[at]) < plan[at].new_tokens]
        waiting = [at for at in range(len(plan)) if at not in numbers and plan[at].at <= now]
        for at in waiting:
            if found.seen[at] < 0:
                found.seen[at] = found.steps
        entering = waiting if not static else waiting[:slots] if not live else []
        for at in entering:
            numbers[at] = engine.submit(prompts[at], plan[at].new_tokens, temperature=0.0)
        if not live and not entering:
            now = min(each.at for at, each in enumerate(plan) if at not in numbers)
            continue
        started = clock()
        engine.step()
        now += clock() - started
        found.steps += 1
        for at in (*live, *entering):
            tokens = engine.tokens(numbers[at])
            found.times[at] += [now] * (len(tokens) - len(found.tokens[at]))
            found.tokens[at] = tokens
    return found


def ideal_steps(seen: Sequence[int], new_tokens: Sequence[int], *, slots: int, static: bool) -> int:
    """Return the steps of a machine in which each request in a slot gets one token a step, first come, first served.

    `seen` is the step before which each request arrived. Continuous: a request enters when a slot is free. Static: at
    most `slots` enter when all of the batch before have ended. Steps in which nobody is served are not counted.
    """
    order = sorted(range(len(seen)), key=lambda at: (seen[at], at))
    served: set[int] = set()
    if static:
        now = 0
        while order:
            now = max(now, seen[order[0]])
            batch = [at for at in order if seen[at] <= now][:slots]
            order = [at for at in order if at not in batch]
            longest = max(new_tokens[at] for at in batch)
            served |= set(range(now, now + longest))
            now += longest
        return len(served)
    free = [0] * slots  # the step from which each slot is free
    heapq.heapify(free)
    for at in order:
        start = max(heapq.heappop(free), seen[at])
        served |= set(range(start, start + new_tokens[at]))
        heapq.heappush(free, start + new_tokens[at])
    return len(served)


def figures(runs: Sequence[Timeline], *, slots: int, static: bool) -> dict[str, float]:
    """Return the medians over the runs of one plan: latencies, throughput and occupancy; each name ends with its unit.

    Occupancy is the tokens over steps x slots; the ideal one is that of `ideal_steps` for the same arrivals.
    """
    if not runs:
        return {}
    rows = [_figures_of(run, slots, static) for run in runs]
    return {name: median([row[name] for row in rows]) for name in rows[0]}


def _figures_of(run: Timeline, slots: int, static: bool) -> dict[str, float]:
    first, between = run.first_token_seconds(), run.between_tokens_seconds() or [0.0]
    lengths = [len(tokens) for tokens in run.tokens]
    ideal = ideal_steps(run.seen, lengths, slots=slots, static=static)
    return {
        "first_token_p50_seconds": quantile(first, 0.50),
        "first_token_p99_seconds": quantile(first, 0.99),
        "between_tokens_p50_seconds": quantile(between, 0.50),
        "between_tokens_p99_seconds": quantile(between, 0.99),
        "served_tokens_per_second": run.tokens_per_second(),
        "occupancy_share": sum(lengths) / (run.steps * slots),
        "ideal_occupancy_share": sum(lengths) / (ideal * slots),
    }


def quantile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
