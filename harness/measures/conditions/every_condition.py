"""Measures of parity under every condition: outputs and loss, and gradients."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES, Size
from harness.measures.conditions.condition import SHAPES, Condition, long_conditions, short_conditions
from harness.measures.conditions.expected import expected_answers, harmless_answers
from harness.measures.conditions.explanation import explain
from harness.measures.conditions.separation import separate
from harness.measures.conditions.sweep import Outcome, Sweep, run, until_all_wrong
from harness.measures.conditions.uninitialised_memory import uninitialised_memory_filled
from harness.measures.options.not_judged import describe, not_judged
from harness.oracle import equivalents, model_cache, noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.noise_verdict import FLOOR_FACTOR_32
from harness.oracle.probe_weights import state, state_of
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import draws_numbers, without_dropout
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

ENOUGH = 8  # conditions: if the first so many are all wrong, the others say nothing new
ENOUGH_SHAPES = 3  # of models, in the same way
# (rows, tokens) of the passes whose gradients are compared.
GRADIENT_SHAPES = ((1, 1), (1, 31), (3, 17), (9, 16), (5, 32))


@measure
def every_condition(
    subject: Subject, *, size: str, over: Literal["shapes and modes", "long contexts"], seed: int = 0
) -> Reading:
    """Return the noise verdict on the logits, and on the model's own loss, under each condition of a table.

    Every row of a batch and every position is compared, in float32 and in float64. The conditions are called one after
    the other on one model. The places of a failure begin with what separates wrong conditions from right ones. The
    parameters of forward and generate that no check passes are in the details, under "not judged".
    """
    target = SIZES[size]
    conditions = (
        short_conditions(seed, context=target.context)
        if over == "shapes and modes"
        else long_conditions(seed, context=target.context)
    )
    sweep = Sweep(
        subject,
        expected_answers(target, rows=max(each.rows for each in conditions), seed=seed),
        _builder(subject, target),
    )
    notes = {}
    if any(each.mode == "train" for each in conditions) and _draws(subject, target):
        conditions = [dataclasses.replace(each, mode="eval") for each in conditions]
        notes["training mode"] = "it draws random numbers that no dropout rate switches off"
    if over == "shapes and modes" and (left_out := describe(not_judged(subject, size))):
        notes["options"] = left_out
    outcomes = run(sweep, conditions, enough=ENOUGH)
    if _only_beyond_float32(outcomes):
        for other in harmless_answers(target, sweep.expected):
            with_variant = Sweep(subject, other, sweep.build)
            again = run(with_variant, conditions, enough=ENOUGH)
            if all(each.is_right for each in again):
                outcomes = again
                break
    return _reading(sweep, outcomes, notes)


@measure
def every_shape_of_model(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return the noise verdict on the logits of narrow models with GPT-2's own numbers of heads and layers.

    In float32 alone: to build them takes most of the time.

    Raises MissingAbility if the subject can be built with none of them.
    """
    refused = dict[str, str]()

    def each_outcome() -> Iterator[Outcome]:
        for heads, layers in SHAPES:
            shape = Condition(rows=2, length=7, heads=heads, layers=layers)
            narrow = dataclasses.replace(
                SIZES[size], name=f"debug: {layers} layers, {heads} heads", context=8, layers=layers, heads=heads,
                width=max(8, 4 * heads),
            )  # fmt: skip
            try:
                answers = expected_answers(narrow, rows=2, seed=seed, by_formula=True)
                yield Sweep(subject, answers, _builder(subject, narrow), ("float32",)).outcome(shape)
            except MissingAbility as missing:
                refused[str(shape)] = str(missing)

    outcomes = list(until_all_wrong(ENOUGH_SHAPES, each_outcome()))
    if not outcomes:
        raise MissingAbility(next(iter(refused.values())))
    return _reading(None, outcomes, refused)


@measure
def gradients_under_every_condition(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return the noise verdict on the gradients of the loss for several shapes of the batch, in eval and train mode."""
    found: dict[str, str] = {}
    comparisons: list[dict[str, object]] = []
    parameters: dict[str, list[str]] = {}
    given = state(size, "probe")
    training = not _draws(subject, SIZES[size])
    models: dict[str, Model] = {}

    def candidate(dtype: str) -> Model:
        if dtype not in models:
            # A dropout that nothing sets to 0 is switched off.
            models[dtype] = without_dropout(build_with_weights(subject, SIZES[size], given, dtype, dropout=0.0))
        return models[dtype]

    for number, (rows, length) in enumerate(GRADIENT_SHAPES):
        mode = "train" if training and number % 2 else "eval"
        place = str(Condition(rows, length, mode))
        for dtype in ("float32", "float64"):
            candidate(dtype).module.train(mode == "train")
        ids, targets = batch(SIZES[size], "random", rows=rows, length=length, seed=seed)
        comparison = equivalents.compare_allowing_equivalents(
            candidate, _expected_gradients(size, ids, targets), ids, targets, size=SIZES[size], state=given
        )
        worst = next((d for d in comparison.gradients if d.verdict == "different"), comparison.gradients[0])
        found[place] = worst.verdict
        comparisons.append({**worst.as_row(), "where": place})
        parameters[place] = [d.where for d in comparison.gradients if d.verdict == "different"]
    wrong = {place: names for place, names in parameters.items() if names}
    hint = "; ".join(f"{place}: {len(names)} gradients, the first {names[0]}" for place, names in wrong.items())
    return Reading(found, details={"comparisons": comparisons, "hint": hint})


def _expected_gradients(size: str, ids: Tensor, targets: Tensor) -> noise_verdict.ReferenceRun:
    """Return Hugging Face's gradients of the loss of ids (B, T)."""
    return model_cache.cached_if_small(
        size,
        ("gradients under conditions", ids.shape, ids.sum().item()),
        lambda: noise_verdict.run_reference(
            lambda dtype: oracle(SIZES[size], state(size, "probe"), dtype), ids, targets, backward=True
        ),
    )


def _builder(subject: Subject, size: Size) -> Callable[[str], Model]:
    """Return a function that builds the subject in a dtype, in memory that is filled where nobody has written it."""

    def build(dtype: str) -> Model:
        with uninitialised_memory_filled():
            return build_with_weights(subject, size, state_of(size, "probe"), dtype, dropout=0.0)

    return build


def _draws(subject: Subject, size: Size) -> bool:
    """Return True if the subject draws random numbers in training mode that no dropout rate switches off."""
    model = subject.build(size, dropout=0.0)
    ids, targets = batch(size, "random", rows=2, length=8)
    return draws_numbers(model.module, lambda: model.loss(ids, targets))


def _only_beyond_float32(outcomes: Sequence[Outcome]) -> bool:
    """Return True if only float64 shows a difference, and only in digits that float32 does not have."""
    wrong = [each.difference for each in outcomes if not each.is_right]
    return bool(wrong) and all(
        d is not None
        and d.float32 <= FLOOR_FACTOR_32 * d.floor32
        and d.float64 <= torch.finfo(torch.float32).eps * d.scale
        for d in wrong
    )


def _reading(sweep: Sweep | None, outcomes: Sequence[Outcome], notes: dict[str, str]) -> Reading:
    """Return the verdict on each condition; if one is wrong, the first place is what they have in common."""
    wrong = [each for each in outcomes if not each.is_right]
    notes |= {str(each.condition): f"refused: {each.error}" for each in outcomes if each.refused and each.error}
    rows: list[dict[str, Any]] = [
        {**each.difference.as_row(), "where": str(each.condition)} for each in outcomes if each.difference is not None
    ]
    values = {str(each.condition): each.verdict for each in [*wrong, *outcomes] if not each.refused}
    said: list[str] = []
    if wrong:
        conditions = [each.condition for each in outcomes]
        said = explain(sweep, outcomes) if sweep else separate(conditions, [each.condition for each in wrong])
        if said:
            values = {said[0]: wrong[0].verdict, **values}
            rows += [{**row, "where": said[0]} for row in rows if row["where"] == str(wrong[0].condition)]
    details: dict[str, Any] = {"comparisons": rows, "hint": "; ".join(said[1:]), "not judged": notes}
    return Reading(values, details=details)
