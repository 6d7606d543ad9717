"""Measures of who runs: no request waits for ever, a cancelled one leaves no trace, a stop token ends one alone."""

from __future__ import annotations

import dataclasses

from harness.core.errors import MissingAbility
from harness.measures.batching.company import place, reading
from harness.measures.batching.plan import POSITIONS, REQUESTS, Planned, greedy_alone, serve, usual_plan
from harness.measures.cached_model import cached_model
from harness.oracle.probe_weights import Weights
from harness.subjects.adapters.serving_engine import PAGE
from harness.subjects.model import Model
from harness.subjects.protocols import Serves, ServingEngine
from harness.suites.measure_registry import Reading, measure

ONLY_THEN = "the request behind it starts only when its neighbour has ended"
SHORT = 4  # tokens that a short request asks for
AFTER = (0, 1, 3)  # steps after which a request is cancelled: before it starts, in its prompt or at its end, decoding


@measure
def steps_waited(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return whether a long request starts although short ones keep coming: one before each step.

    "started" if it gets its first token within as many steps as all that came before it have tokens, prompts included,
    with its own: an engine that computes one token a step, one request after the other, takes no longer.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = usual_plan(size)
    long, short = plan[1], plan[0].prompt
    # Beside one short request there is no room for the long one, and the short ones do not end in the same step.
    engine = subject.new_engine(model, requests=2, positions=len(long.prompt) + long.new_tokens + 3)
    before = (SHORT // 2, SHORT, SHORT)
    for new_tokens in before:
        engine.submit(short, new_tokens, temperature=0.0)
    number = engine.submit(long.prompt, long.new_tokens, temperature=0.0)
    most = sum(len(short) + new_tokens for new_tokens in before) + len(long.prompt)
    later = []
    for step in range(most):
        later.append(engine.submit(short, SHORT, temperature=0.0))
        engine.step()
        if engine.tokens(number):
            return reading({"a long request": "started"}, {}, engine, after=step + 1, at_most=most)
    overtook = sum(bool(engine.tokens(each)) for each in later)
    said = f"not started after {most} steps, while {overtook} that came later have tokens"
    return reading({"a long request": said}, {"a long request": said}, engine)


@measure
def cancelled_requests(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Return "right" for each moment of a cancellation, or what it leaves behind.

    The cancelled request gets no more tokens, its neighbour gets its own, and one that waits for its memory starts
    while the neighbour still runs. Raises MissingAbility if the engine cannot cancel.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = usual_plan(size)
    neighbour, cancelled, behind = plan[4], plan[3], plan[0]
    found, why = {}, {}
    for steps in AFTER:
        name = f"after {steps} steps"
        # Memory in whole pages for the neighbour and the one that is cancelled, and two slots: the third waits.
        positions = sum(-(-(len(each.prompt) + each.new_tokens) // PAGE) * PAGE for each in (neighbour, cancelled))
        engine = subject.new_engine(model, requests=2, positions=positions)
        if "cancel" not in engine.settings:
            raise MissingAbility("the engine has no method to cancel a request")
        found[name] = _cancelled(engine, model, neighbour, cancelled, behind, steps)
        if found[name] == ONLY_THEN and _waits_for_all(subject, model, positions, neighbour, behind):
            found[name] = "right"  # as it must be where batches are served one after the other
        if found[name] != "right":
            why[name] = found[name]
    return reading(found, why, engine, "cancel")


def _cancelled(
    engine: ServingEngine, model: Model, neighbour: Planned, cancelled: Planned, behind: Planned, steps: int
) -> str:
    numbers = [engine.submit(each.prompt, each.new_tokens, **each.settings) for each in (neighbour, cancelled, behind)]
    for _ in range(steps):
        engine.step()
    so_far = engine.tokens(numbers[1])
    engine.cancel(numbers[1])
    expected = [greedy_alone(model, each.prompt, each.new_tokens) for each in (neighbour, behind)]
    started_beside = False
    for _ in range(neighbour.new_tokens + behind.new_tokens + cancelled.new_tokens + 10):
        running = len(engine.tokens(numbers[0])) < neighbour.new_tokens
        engine.step()
        started_beside |= running and bool(engine.tokens(numbers[2]))
    if len(engine.tokens(numbers[1])) > len(so_far):
        return "the cancelled request gets more tokens"
    if engine.tokens(numbers[0]) != expected[0]:
        return "its neighbour gets other tokens"
    if not engine.tokens(numbers[2]):
        return "the request behind it never starts: its memory is not given back"
    if engine.tokens(numbers[2]) != expected[1]:
        return "the request behind it gets other tokens"
    return "right" if started_beside else ONLY_THEN


def _waits_for_all(subject: Serves, model: Model, positions: int, neighbour: Planned, behind: Planned) -> bool:
    """Return True if a request that waits does not start when another has ended by itself, while a third goes on."""
    engine = subject.new_engine(model, requests=2, positions=positions)
    plan = (neighbour, dataclasses.replace(behind, new_tokens=1), behind)
    served = serve(engine, model, [dataclasses.replace(each, arrives=0) for each in plan])
    return bool(served.steps[0] and served.steps[2]) and served.steps[2][0] > served.steps[0][-1]


@measure
def stop_in_company(subject: Serves, *, size: str, weights: Weights = "probe") -> Reading:
    """Count the tokens of each request that differ where a stop token ends one of them in the middle.

    A stop token may be the last of the tokens or left out. Raises MissingAbility if there is no stop token.
    """
    model = cached_model(subject, size, weights, "float64")
    plan = usual_plan(size)
    answers = [greedy_alone(model, each.prompt, each.new_tokens) for each in plan]
    stop = answers[3][4]  # in the middle of the fourth answer
    engine = subject.new_engine(model, requests=REQUESTS, positions=POSITIONS, stop=stop)
    if "stop" not in engine.settings:
        raise MissingAbility("a request has no stop token")
    served = serve(engine, model, plan)
    found, why = {}, {}
    for number, answer in enumerate(answers):
        name, tokens = place(plan, number), served.tokens[number]
        end = answer.index(stop) if stop in answer else len(answer)
        right = (answer[:end], answer[: end + 1])
        found[name] = 0 if tokens in right else max(1, abs(len(tokens) - len(right[1])))
        if found[name] and tokens == answer[: len(tokens)]:
            why[name] = "it goes on after its stop token" if len(tokens) > end else "it ends before its stop token"
        elif found[name]:
            why[name] = "it gets other tokens than alone"
    return reading(found, why, engine)
