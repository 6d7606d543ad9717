"""The measure of how full an engine's steps are: tokens over steps and slots, against the ideal."""

from __future__ import annotations

from harness.bench import serving
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.oracle.probe_weights import Weights
from harness.oracle.tokens import batch
from harness.subjects.protocols import Serves
from harness.suites.measure_registry import Reading, measure


@measure
def slots_occupied(subject: Serves, *, size: str, requests: int, slots: int, weights: Weights = "probe") -> Reading:
    """Return the share of slots that got a token in a step, with all requests there from the start.

    "continuous" is the engine itself; "static" the same engine, where a batch enters when the one before has ended.
    The ideals are closed forms: first come, first served, one token a step in each slot that is taken.
    """
    model = cached_model(subject, size, weights)
    limits = {"longest_prompt": model.size.context // 3, "most_tokens": model.size.context // 2}
    plan = serving.make_plan(requests, rate=0, **limits)
    ids, _ = batch(SIZES[size], "random", rows=requests, length=limits["longest_prompt"])
    prompts = [row[: each.prompt].tolist() for row, each in zip(ids, plan, strict=True)]
    lengths = [each.new_tokens for each in plan]
    found = {}
    for name, static in (("continuous", False), ("static", True)):
        engine = subject.new_engine(model, requests=slots, positions=slots * model.size.context)
        run = serving.serve(engine, plan, prompts, slots=slots, static=static)
        ideal = serving.ideal_steps([0] * requests, lengths, slots=slots, static=static)
        found[name] = sum(lengths) / (run.steps * slots)
        found[f"{name}, ideal"] = sum(lengths) / (ideal * slots)
    return Reading({**found, "continuous over static": found["continuous"] / found["static"]}, "of the slots")
