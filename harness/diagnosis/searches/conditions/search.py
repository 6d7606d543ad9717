"""The search at the condition that failed: what is computed there, at which place, in which line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence

import torch

from harness.core.sizes import SIZES, Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.recorders import ModuleCreationSites
from harness.diagnosis.searches import computation
from harness.diagnosis.searches.conditions.nonlinear_backward import nonlinear_backward
from harness.diagnosis.searches.conditions.replay import under_condition
from harness.diagnosis.searches.conditions.stale_weights import stale_weights
from harness.diagnosis.searches.conditions.writes import changed_state, overwritten_answers
from harness.measures.conditions.condition import SHAPES, Condition, long_conditions, short_conditions
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.oracle.probe_weights import state_of
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.record import Record

FAULT = "wrong-under-a-condition"
REPLAYED = frozenset(
    (FAULT, "stale-weights", "answer-overwritten", "call-changes-weights", "backward-not-linear")
)  # the faults that only name what a check saw, and are looked into
RIGHT = ("equal", "rounding")
TRIED = 3  # conditions that fail, the plainest first
PLAIN = Condition()


def search(subject: Subject, failed: Sequence[Record]) -> list[Finding]:
    """Return what the subject computes under the conditions of its failed checks; [] if none of these is replayed."""
    for measure, replay in REPLAYS.items():
        for record in failed:
            if record.check.measure != measure or not isinstance(record.value, Mapping):
                continue
            if found := replay(subject, record):
                return found
    return []


def _sweep(subject: Subject, record: Record) -> list[Finding]:
    """Replay the plainest conditions of a failed sweep, in new models; if they are right there, after those before."""
    size = SIZES[str(record.check.parameters["size"])]
    seed = int(str(record.check.parameters.get("seed", 0)))
    is_long = record.check.parameters["over"] == "long contexts"
    table = (long_conditions if is_long else short_conditions)(seed, context=size.context)
    if "training mode" in record.details.get("not judged", {}):  # the sweep was in eval mode alone
        table = [dataclasses.replace(each, mode="eval") for each in table]
    wrong = [each for each in table if record.value.get(str(each), "equal") not in RIGHT]
    wrong.sort(key=_complexity)
    rows = max(each.rows for each in table)
    said = _sentence(record)
    for condition in wrong[:TRIED]:
        if found := _replayed(subject, size, condition, rows=rows, seed=seed):
            return [_under(each, said or f"with {condition}", condition) for each in found]
    for condition in wrong[:1]:
        before = table[: table.index(condition)]
        if found := _replayed(subject, size, condition, rows=rows, seed=seed, before=before):
            return [_under(each, said or "after other calls", condition) for each in found]
    return []


def _shapes(subject: Subject, record: Record) -> list[Finding]:
    """Replay the narrow models that are wrong, the one with the fewest heads and layers first."""
    base = SIZES[str(record.check.parameters["size"])]
    for heads, layers in sorted(SHAPES, key=lambda shape: shape[0] * shape[1]):
        condition = Condition(rows=2, length=7, heads=heads, layers=layers)
        if record.value.get(str(condition), "equal") not in RIGHT:
            narrow = dataclasses.replace(
                base, name="narrow", context=8, layers=layers, heads=heads, width=max(8, 4 * heads)
            )
            if found := _replayed(subject, narrow, condition, rows=2, seed=0):
                return [_under(each, _sentence(record) or f"with {condition}", condition) for each in found]
    return []


def _gradients(subject: Subject, record: Record) -> list[Finding]:
    """Replay the shapes whose gradients are wrong."""
    size = SIZES[str(record.check.parameters["size"])]
    for place, verdict in record.value.items():
        words = re.fullmatch(r"(\d+) rows? of (\d+) tokens?(, train)?", place)
        if words is not None and verdict not in RIGHT:
            condition = Condition(
                int(words[1]), int(words[2]), "train" if words[3] else "eval", gradients="recorded", call="targets"
            )
            if found := _replayed(subject, size, condition, rows=condition.rows, seed=0):
                return [_under(each, f"with {place}", condition) for each in found]
    return []


# By measure. What a call leaves behind comes first: what is wrong after other calls follows from it.
REPLAYS: Mapping[str, Callable[[Subject, Record], list[Finding]]] = {
    "state_changed": changed_state,
    "answers_overwritten": overwritten_answers,
    "stale_answers": stale_weights,
    "backward_nonlinearity": nonlinear_backward,
    "every_condition": _sweep,
    "every_shape_of_model": _shapes,
    "gradients_under_every_condition": _gradients,
}


def _replayed(
    subject: Subject,
    size: Size,
    condition: Condition,
    *,
    rows: int,
    seed: int,
    before: Sequence[Condition] = (),
) -> list[Finding]:
    """Return what is found in a new model under the condition; [] if it computes there what GPT-2 computes."""
    all_ids, all_targets = batch(size, "random", rows=rows, length=size.context, seed=seed)
    ids = all_ids[: condition.rows, : condition.length].contiguous()
    targets = all_targets[: condition.rows, : condition.length].contiguous()
    if condition.ids == "expanded":
        ids = ids[:1].repeat(condition.rows, 1)

    def conditioned(weights: str) -> tuple[Model, ModuleCreationSites]:
        with ModuleCreationSites() as sites, uninitialised_memory_filled():
            model = build_with_weights(subject, size, state_of(size, weights), "float64", dropout=0.0)  # type: ignore[arg-type]
        return under_condition(subject, model, condition, all_ids, all_targets, before), sites

    model, sites = conditioned("probe")
    given = computation.published_weights(model, state_of(size, "probe"))
    return computation.differences(model, sites, given, ids, targets, other=None, cases=_cases(size, condition))


def _cases(size: Size, condition: Condition) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [batch(size, "random", rows=condition.rows, length=condition.length, seed=seed) for seed in (0, 1, 2)]


def _complexity(condition: Condition) -> tuple[int, int]:
    """Return in how many things a condition is not plain; among equals those with the most tokens come first."""
    names = [field.name for field in dataclasses.fields(condition)]
    differs = sum(getattr(condition, name) != getattr(PLAIN, name) for name in names)
    return differs, -min(condition.rows, 3) * min(condition.length, 64)


def _sentence(record: Record) -> str:
    """Return what separates the wrong conditions from the right ones, as the check says it; "" if nothing does."""
    first = record.where[0] if record.where else ""
    return first.split(" (wrong:")[0] if first.startswith(("wrong ", "right in a new model")) else ""


def _under(finding: Finding, said: str, condition: Condition) -> Finding:
    evidence = f"{finding.evidence}; seen with {condition}"
    alike = tuple(dict.fromkeys((*finding.alike, *([finding.fault] if finding.fault else []))))
    return dataclasses.replace(finding, fault=FAULT, cause=f"{said}: {finding.cause}", evidence=evidence, alike=alike)
