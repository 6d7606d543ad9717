"""`diagnose`: every part of the diagnosis in turn, each guarded, so that one that fails costs only itself."""

from __future__ import annotations

import contextlib
import dataclasses
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from harness.core.error_text import is_user_file
from harness.core.errors import HarnessError, Missing
from harness.core.sizes import SIZES
from harness.diagnosis import components, reproduction, rules
from harness.diagnosis.finding import Diagnosis, Finding
from harness.diagnosis.observation import ModuleCreationSites, Observation, SourceLine, observe
from harness.diagnosis.searches import (
    backward,
    forward,
    generation,
    initialisation,
    kv_cache,
    loading,
    loss,
    precision,
    structure,
)
from harness.oracle.probe_weights import Weights, state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights

if TYPE_CHECKING:
    from harness.judging.run_check import Record

SIZE = "debug"
SHOWS = 1e-9  # relative, in float64: rounding is some 1e-15


def diagnose(subject: Subject, records: Sequence[Record] = ()) -> Diagnosis:
    """What is wrong with the subject, at the debug size; `records` say what failed, and so where to look.

    Without records everything is looked into. Nothing that the subject does, short of Ctrl-C, is raised: what could
    not be looked into is told in `trouble`.
    """
    failed = [record for record in records if record.verdict in ("fail", "error")]
    suites = {record.check.suite for record in failed}
    found: list[Finding] = []
    trouble: list[str] = []
    for part, concerns in PARTS:
        if (records and not suites & concerns) or (concerns == {"generation"} and _unsteady(found)):
            continue
        try:
            found += part(subject)
        except (Missing, HarnessError) as error:
            trouble.append(str(error))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            trouble.append(f"{type(error).__name__}: {error}")
            if part is _computation and (broken := _broken(error)) is not None:
                found.append(broken)
                break  # what cannot be called has nothing else to tell
    if not found:  # what a check says by itself counts where nothing deeper was found: one cause, many red lines
        found = rules.explain(failed)
    if failed and not found:
        found = [Finding(failed[0].check.suite, "", "no explanation of the catalogue fits", failed[0].message)]
    found = _folded(found)
    script, data = "", ""
    try:
        script, data = _script(subject, found)
    except Exception as error:  # it costs nothing but itself
        trouble.append(f"no script to reproduce it: {type(error).__name__}: {error}")
    apart = _divergence(subject) if found else {}
    return Diagnosis(tuple(_confirmed(found, apart)), apart, script, data, trouble="; ".join(dict.fromkeys(trouble)))


def _script(subject: Subject, found: Sequence[Finding]) -> tuple[str, str]:
    """The script for the first finding that shows in the logits."""
    shown = [finding for finding in found if _in_the_logits(finding)]
    if not shown:
        return "", ""
    return reproduction.reproduction(subject, shown[0])


def _in_the_logits(finding: Finding) -> bool:
    computed = ("h.", "embedding", "ln_f", "head", "blocks")
    return finding.where.startswith(computed) and "gradient" not in finding.cause and "in training" not in finding.cause


def _divergence(subject: Subject) -> dict[str, dict[str, float]]:
    """See `components.divergence`; nothing where it cannot be had."""
    try:
        model, _ = _held(subject, "probe", False)
        ids, _ = batch(SIZES[SIZE], "random", rows=2, length=24)
        return components.divergence(model, ids, _weights(model, "probe"))
    except Exception:
        return {}


def _folded(found: Sequence[Finding]) -> list[Finding]:
    """One finding for one mistake on one line that shows in several places, as in every norm of a class."""
    folded: list[Finding] = []
    for finding in found:
        same = [
            n for n, f in enumerate(folded) if finding.fault and (f.fault, f.source) == (finding.fault, finding.source)
        ]
        if same and finding.source:
            first = folded[same[0]]
            folded[same[0]] = dataclasses.replace(first, cause=f"{first.cause}; the same in {finding.where}")
        else:
            folded.append(finding)
    return folded


def _confirmed(findings: Sequence[Finding], divergence: Mapping[str, Mapping[str, float]]) -> list[Finding]:
    """The findings, with what teacher forcing says of the components that they lie in."""
    return [_with_forcing(finding, divergence) for finding in findings]


def _with_forcing(finding: Finding, divergence: Mapping[str, Mapping[str, float]]) -> Finding:
    words = finding.where.replace("h.*", "h.0").split(".")
    place = ".".join(words[:3]) if words[0] == "h" else words[0]
    alone = divergence.get(place, {}).get("alone")
    if alone is None or not alone > SHOWS:
        return finding
    told = f"{finding.evidence}; given GPT-2's own input, {place} alone is off by {alone:.1e} of its size"
    return dataclasses.replace(finding, evidence=told)


def _broken(error: BaseException) -> Finding | None:
    """An error of the subject's own: what it says, and the line that it comes from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if is_user_file(f.filename)]
    if not frames:
        return None
    line = SourceLine(frames[-1].filename, frames[-1].lineno or 0)
    cause = f"building or calling it fails: {type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return Finding(
        "forward", "", cause, "at the debug size, where every dimension is another number", str(line), line.text
    )


def _unsteady(found: Sequence[Finding]) -> bool:
    """Whether rounding or chance is in the forward pass already: what is decoded or drawn then differs by it."""
    return any("low-precision" in finding.fault or finding.where == "dropout" for finding in found)


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
            return [_in_training_only(finding) for finding in findings] if training else findings
    return precision.overflow(subject)


IN_TRAINING = {
    "mask-missing": "mask-only-in-evaluation",
    "residual-detached": "residual-detached-in-training",
    "loss-label-smoothing-left-on": "loss-label-smoothing-in-training",
}


def _in_training_only(finding: Finding) -> Finding:
    cause = f"in training mode only: {finding.cause}"
    fault = IN_TRAINING.get(finding.fault, finding.fault)
    return dataclasses.replace(finding, fault=fault, cause=cause, alike=(*finding.alike, finding.fault))


def _one_way(subject: Subject, weights: Weights, *, training: bool) -> list[Finding]:
    """The forward pass over the whole context; where that is explained, the loss; where that is right, gradients."""
    size = SIZES[SIZE]
    ids, targets = batch(size, "random", rows=2, length=size.context)
    model, births = _held(subject, weights, training)
    given = _weights(model, weights)
    observed, low = precision.without_downcasts(model, ids, births, observe(model, ids, births), given, size)
    passed = forward.explain(observed, ids, given, size, {} if low else _streams(model, ids), _blocks(model))
    findings = [*low, *passed.findings]
    if low or not passed.complete or passed.forced or weights == "extreme":
        return findings
    lost = loss.explain(model, given, size, passed.changes, births)
    if lost:
        return findings + lost
    return findings + backward.explain(model, ids, targets, given, size, passed.changes, births)


def _weights(model: Model, weights: Weights) -> dict[str, Tensor]:
    """The published weights, float64, those that the subject has no parameter for being neutral: told elsewhere."""
    given = {name: tensor.double() for name, tensor in state(SIZE, weights).items()}
    for row in model.weights.missing:
        neutral = 1.0 if "ln_" in row.published and row.published.endswith("weight") else 0.0
        given[row.published] = given[row.published].clone()
        row.part_of(given[row.published]).fill_(neutral)
    return given


def _held(subject: Subject, weights: Weights, training: bool) -> tuple[Model, ModuleCreationSites]:
    options: dict[str, Any] = {"dropout": 0.0} if training else {}
    with ModuleCreationSites() as births:
        model = build_with_weights(subject, SIZES[SIZE], state(SIZE, weights), "float64", **options)
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
        where="dropout" if drops else "block",
        fault=_dropping(first, number) if drops else "",
        cause=("dropout is active in eval mode" if drops else "the same input gives another answer the second time"),
        evidence=f"two forward passes in eval mode differ by {gap:.1e} in the logits",
        source="" if line is None else str(line),
        text="" if line is None else line.text,
    )


def _dropping(observed: Observation, number: int | None) -> str:
    """Attention weights are (..., T, T); everything else that is dropped is as wide as the stream."""
    shape = () if number is None else tuple(observed.steps[number].tensor.shape)
    return "attn-dropout-active-in-eval" if shape.count(24) > 1 else "dropout-active-in-eval"


def _blocks(model: Model) -> dict[int, nn.Module]:
    """The modules that are the blocks, where there are such."""
    found = {}
    for layer in range(model.size.layers):
        with contextlib.suppress(Exception):
            found[layer] = model.component(f"transformer.h.{layer}")
    return found


def _streams(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """The stream before the first block and after each, where the subject has modules that hooks can see."""
    try:
        with torch.no_grad(), model.block_outputs() as outputs:
            model.logits(ids)
    except Exception:
        return {}
    return {name.replace("block ", "h."): tensor.detach().double() for name, tensor in outputs.items()}


_EVERY = frozenset(("structure", "behaviour", "attention", "loss", "parity", "precision", "generation", "loading"))
# In the order in which they are told: what a model is made of, what it computes, how it starts, what is done with it.
PARTS: tuple[tuple[Callable[[Subject], list[Finding]], frozenset[str]], ...] = (
    (structure.explain, frozenset(("structure", "behaviour", "loading", "interface"))),
    (_computation, _EVERY | {"interface"}),
    (structure.ties, frozenset(("structure",))),
    (structure.dropout, frozenset(("structure",))),
    (initialisation.explain, frozenset(("initialisation",))),
    (loading.explain, frozenset(("loading",))),
    (kv_cache.explain, frozenset(("generation",))),
    (generation.explain, frozenset(("generation",))),
)
