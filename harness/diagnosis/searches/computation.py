"""The search through forward pass, loss and backward pass: in eval mode, in training mode, and with dropout on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.core.source_lines import location
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import Observation, observe
from harness.diagnosis.recorders import ModuleCreationSites
from harness.diagnosis.searches import backward, forward, loss, precision
from harness.diagnosis.searches.dropout import LENGTH, RATE, is_attention
from harness.measures.dropout.parity import dropout_parity
from harness.measures.dropout.recorded_pass import candidate, isolated_random_numbers
from harness.oracle.probe_weights import State, Weights, state
from harness.oracle.replayed_dropout import MasksByValue, replaying
from harness.oracle.tokens import batch
from harness.oracle.variants import Variant
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import WithoutDropout, draws_numbers, has_dropout_setting, without_dropout
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.subjects.random_draws import RandomDraws
from harness.subjects.weight_map import published_shapes

SIZE = "debug"
# The weights, and whether in training mode, without dropout. With the extreme weights the scores are so sharp that a
# mask shows which is not minus infinity.
RUNS: tuple[tuple[Weights, bool], ...] = (("probe", False), ("extreme", False), ("probe", True))
# The fault's id -> the id of the same fault in training mode only.
TRAINING_FAULTS = {
    "mask-missing": "mask-only-in-evaluation",
    "residual-detached": "residual-detached-in-training",
    "loss-label-smoothing-left-on": "loss-label-smoothing-in-training",
}
WITH_DROPOUT_FAULTS = {"mask-missing": "mask-only-without-dropout"}


def search(subject: Subject) -> list[Finding]:
    """Return the findings of the first run that has any."""
    changing = _changing(subject)
    if changing is not None:
        return [changing]
    for weights, training in RUNS:
        findings = _run(subject, weights, training=training)
        if findings:
            return [_in_training_only(finding) for finding in findings] if training else findings
    return _with_dropout(subject) or precision.overflow(subject)


def built(subject: Subject, weights: Weights, *, training: bool) -> tuple[Model, ModuleCreationSites]:
    """Return the subject in float64 with these weights, and the lines that created its modules."""
    options: dict[str, Any] = {"dropout": 0.0} if training and has_dropout_setting(subject) else {}
    with ModuleCreationSites() as sites:
        model = build_with_weights(subject, SIZES[SIZE], state(SIZE, weights), "float64", **options)
    model.module.train(training)
    return model, sites


def published_weights(model: Model, weights: State) -> dict[str, Tensor]:
    """Return the weights in float64 under their published names, those that GPT-2 does not have included.

    Those that the subject has no parameter for have no effect: another search reports them.
    """
    given = {name: tensor.double() for name, tensor in weights.items()}
    own = model.published_state()
    given |= {name: t.double() for name, t in own.items() if name not in given or given[name].shape != t.shape}
    shapes = published_shapes(model.size)
    for row in model.weights.missing:
        neutral = 1.0 if "ln_" in row.published and row.published.endswith("weight") else 0.0
        is_as_wide = tuple(given[row.published].shape) == shapes[row.published]
        # The bias of a layer that has another width than GPT-2's has that width, too.
        given[row.published] = (
            given[row.published].clone() if is_as_wide else torch.zeros(shapes[row.published], dtype=torch.float64)
        )
        row.part_of(given[row.published]).fill_(neutral)
    return given


def _run(subject: Subject, weights: Weights, *, training: bool) -> list[Finding]:
    """Search the forward pass over the whole context; if it is matched, the loss; if that is right, the gradients."""
    ids, targets = batch(SIZES[SIZE], "random", rows=2, length=SIZES[SIZE].context)
    model, sites = built(subject, weights, training=training)
    if training and draws_numbers(model.module, lambda: model.logits(ids)):
        return []  # no pass in training mode can be compared with another

    def other() -> forward.Alignment:
        """Return the pass with other weights."""
        name: Weights = "extreme" if weights == "probe" else "probe"
        same, _ = built(subject, name, training=training)
        return forward.Alignment(
            observe(without_dropout(same), ids), ids, published_weights(same, state(SIZE, name)), same.size
        )

    given = published_weights(model, state(SIZE, weights))
    return differences(without_dropout(model), sites, given, ids, targets, other, only_forward=weights == "extreme")


def _with_dropout(subject: Subject) -> list[Finding]:
    """Search the pass in training mode with dropout on: the masks that the subject draws are replayed in the formula.

    Return [] if nothing is drawn, or if what is drawn is no mask of a value.
    """
    try:
        compared = [
            dropout_parity(subject, size=SIZE, compare=each, rate=RATE) for each in ("logits", "loss", "gradients")
        ]
    except MissingAbility:
        return []
    if not any("different" in each.value.values() for each in compared if isinstance(each.value, Mapping)):
        return []
    ids, targets = batch(SIZES[SIZE], "random", rows=2, length=SIZES[SIZE].context)
    draws = RandomDraws()

    def followed(model: Model) -> Model:
        def call(module: nn.Module, ids: Tensor, targets: Tensor | None) -> tuple[Tensor, Tensor | None]:
            with draws.following():
                return calling(module, ids, targets)

        calling = model.calling
        return dataclasses.replace(model, calling=call)

    def other() -> forward.Alignment:
        """Return the pass with other weights."""
        same = followed(candidate(subject, SIZE, RATE, "float64").load(state(SIZE, "extreme")))
        return forward.Alignment(observe(same, ids), ids, published_weights(same, state(SIZE, "extreme")), same.size)

    with isolated_random_numbers(), replaying(MasksByValue(draws.drops)):
        with ModuleCreationSites() as sites:
            model = followed(candidate(subject, SIZE, RATE, "float64"))
        given = published_weights(model, state(SIZE, "probe"))
        findings = differences(model, sites, given, ids, targets, other)
    return [_in_training_only(finding, WITH_DROPOUT_FAULTS, "with dropout on") for finding in findings]


def differences(
    model: Model,
    sites: ModuleCreationSites,
    given: dict[str, Tensor],
    ids: Tensor,
    targets: Tensor,
    other: Callable[[], forward.Alignment] | None = None,
    *,
    cases: Sequence[loss.Case] = (),
    unlisted: Sequence[Variant] = (),
    only_forward: bool = False,
) -> list[Finding]:
    """Search the forward pass over `ids` (B, T); if it is matched, the loss; if that is right, the gradients.

    `given`: the weights under their published names. `cases`: batches whose losses are compared; by default some of
    the plain size. `unlisted`: variants of this call's own, which are tried first.
    """
    size = model.size
    observed, low = precision.without_downcasts(model, ids, sites, observe(model, ids, sites), given, size)
    # With downcasts undone, the values that hooks read are not those observed.
    own_values = {} if low else _residual_stream(model, ids)
    result = forward.search(observed, ids, given, size, own_values, _owners(model), other, unlisted)
    findings = [*low, *result.findings]
    if low or not result.complete or result.forced or only_forward:
        return findings
    if result.bound:
        cases = [(ids, targets), (ids, targets.index_fill(1, torch.tensor([0]), 0)), (ids, targets.roll(2, 1))]
    wrong_loss, changes = loss.search(model, given, size, result.changes, sites, cases)
    return findings + (wrong_loss or backward.search(model, ids, targets, given, size, changes, sites))


def _in_training_only(finding: Finding, ids: Mapping[str, str] = TRAINING_FAULTS, condition: str = "only") -> Finding:
    cause = f"in training mode {condition}: {finding.cause}"
    fault = ids.get(finding.fault, finding.fault)
    return dataclasses.replace(finding, fault=fault, cause=cause, alike=(*finding.alike, finding.fault))


def _residual_stream(model: Model, ids: Tensor) -> dict[str, Tensor]:
    """Return the residual stream (B, T, C), `embedding` and after each block `h.N`; {} if hooks cannot read it."""
    try:
        with torch.no_grad(), model.block_outputs() as outputs:
            model.logits(ids)
    except Exception:
        return {}
    return {name.replace("block ", "h."): tensor.detach().double() for name, tensor in outputs.items()}


def _owners(model: Model) -> dict[int | None, frozenset[int]]:
    """Return the ids of the modules that connect the parts: by layer the block; by None all that contain blocks."""
    found: dict[int | None, frozenset[int]] = {}
    for layer in range(model.size.layers):
        with contextlib.suppress(Exception):
            found[layer] = frozenset((id(model.component(f"transformer.h.{layer}")),))
    blocks = frozenset().union(*found.values())
    around = (m for m in model.module.modules() if blocks & {id(part) for part in m.modules() if part is not m})
    return {**found, None: frozenset(map(id, around)) | {id(model.module)}}


def _changing(subject: Subject) -> Finding | None:
    """Return the finding for two forward passes in eval mode that differ; None if they do not."""
    model, sites = built(subject, "probe", training=False)
    ids, _ = batch(SIZES[SIZE], "random", rows=2, length=LENGTH)
    with torch.random.fork_rng():
        first, second = observe(model, ids, sites), observe(model, ids, sites)
    if _equal(first.logits, second.logits):
        return None
    number = _first_step_that_differs(first, second)
    line = first.line(number)
    difference = float((first.logits - second.logits).abs().max())
    evidence = f"two forward passes in eval mode differ by {difference:.1e} in the logits"
    with torch.no_grad(), WithoutDropout():
        same = torch.equal(model.logits(ids), model.logits(ids))
    if number is None or not same:
        return Finding("block", "", "the same input gives other logits the second time", evidence, *location(line))
    attention = is_attention(tuple(first.steps[number].tensor.shape))
    fault = "attn-dropout-active-in-eval" if attention else "dropout-active-in-eval"
    evidence += "; without PyTorch's dropout they agree"
    return Finding("dropout", fault, "dropout is active in eval mode", evidence, *location(line))


def _first_step_that_differs(first: Observation, second: Observation) -> int | None:
    pairs = enumerate(zip(first.steps, second.steps, strict=False))
    return next((number for number, (a, b) in pairs if not _equal(a.tensor, b.tensor)), None)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())
