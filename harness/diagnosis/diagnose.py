"""`diagnose`: every part of the diagnosis in turn, each guarded, so that one that fails costs only itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.diagnosis import backward, forward, loss
from harness.diagnosis.finding import Diagnosis, Finding
from harness.diagnosis.observe import Births, Observation, observe
from harness.errors import HarnessError, Missing
from harness.size import SIZES
from harness.states import Weights, state
from harness.subject import Model, Subject, holding
from harness.tokens import batch

if TYPE_CHECKING:
    from harness.run import Record

SIZE = "debug"


def diagnose(subject: Subject, records: Sequence[Record] = ()) -> Diagnosis:
    """What is wrong with the subject, at the debug size; `records` say what failed, and so where to look.

    Nothing that the subject does, short of Ctrl-C, is raised: what could not be looked into is told in `trouble`.
    """
    found: list[Finding] = []
    trouble: list[str] = []
    for part in (_computation,):
        try:
            found += part(subject)
        except (Missing, HarnessError) as error:
            trouble.append(str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            trouble.append(f"{type(error).__name__}: {error}")
    return Diagnosis(tuple(found), trouble="; ".join(dict.fromkeys(trouble)))


def _computation(subject: Subject) -> list[Finding]:
    """The forward pass, the loss and the backward pass: in eval mode, and in training mode without dropout.

    Between the two with scores so sharp that a weak mask shows. What one way shows is not told again by the next.
    """
    changing = _changing(subject)
    if changing is not None:
        return [changing]
    ways: tuple[tuple[Weights, bool], ...] = (("probe", False), ("extreme", False), ("probe", True))
    for weights, training in ways:
        findings = _one_way(subject, weights, training=training)
        if findings:
            mode = "in training mode only: " if training else ""
            return [dataclasses.replace(finding, cause=mode + finding.cause) for finding in findings]
    return []


def _one_way(subject: Subject, weights: Weights, *, training: bool) -> list[Finding]:
    """The forward pass over the whole context; where that is explained, the loss; where that is right, gradients."""
    size = SIZES[SIZE]
    ids, targets = batch(size, "random", rows=2, length=size.context)
    model, births = _held(subject, weights, training)
    given = {name: tensor.double() for name, tensor in state(SIZE, weights).items()}
    passed = forward.explain(observe(model, ids, births), ids, given, size, _streams(model, ids))
    findings = list(passed.findings)
    if not passed.complete or passed.forced or weights == "extreme":
        return findings
    lost = loss.explain(model, given, size, passed.changes, births)
    if lost:
        return findings + lost
    return findings + backward.explain(model, ids, targets, given, size, passed.changes, births)


def _held(subject: Subject, weights: Weights, training: bool) -> tuple[Model, Births]:
    options: dict[str, Any] = {"dropout": 0.0} if training else {}
    with Births() as births:
        model = holding(subject, SIZES[SIZE], state(SIZE, weights), "float64", **options)
    model.module.train(training)
    return model, births


def _changing(subject: Subject) -> Finding | None:
    """What makes two forward passes in eval mode differ."""
    model, births = _held(subject, "probe", False)
    ids, _ = batch(SIZES[SIZE], "random", rows=2, length=24)
    with torch.random.fork_rng():
        first, second = observe(model, ids, births), observe(model, ids, births)
    if torch.equal(first.logits.nan_to_num(), second.logits.nan_to_num()):
        return None
    number = next(
        (
            n
            for n, (a, b) in enumerate(zip(first.steps, second.steps, strict=False))
            if a.tensor.shape != b.tensor.shape or not torch.equal(a.tensor.nan_to_num(), b.tensor.nan_to_num())
        ),
        None,
    )
    line = first.line(number)
    drops = number is not None and "drop" in first.steps[number].operation + (line.text if line else "")
    gap = float((first.logits - second.logits).abs().max())
    return Finding(
        where=_place_of(first, number, subject),
        fault=("attn-dropout-active-in-eval" if drops else ""),
        cause=("dropout is active in eval mode" if drops else "the same input gives another answer the second time"),
        evidence=f"two forward passes in eval mode differ by {gap:.1e} in the logits",
        source="" if line is None else str(line),
        text="" if line is None else line.text,
    )


def _place_of(observed: Observation, number: int | None, subject: Subject) -> str:
    """The place of the formula that a step comes after, read off the shape of what the step gave."""
    size = SIZES[SIZE]
    if number is None:
        return "block"
    shape = tuple(observed.steps[number].tensor.shape)
    return "attn" if shape.count(24) > 1 or size.head_width in shape else "dropout"


def _streams(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """The stream before the first block and after each, where the subject has modules that hooks can see."""
    try:
        with torch.no_grad(), model.block_outputs() as outputs:
            model.logits(ids)
    except Exception:
        return {}
    return {name.replace("block ", "h."): tensor.detach().double() for name, tensor in outputs.items()}
