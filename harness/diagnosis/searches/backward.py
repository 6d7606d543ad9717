"""The search for where gradients stop, or are scaled, in a model whose forward pass and loss are matched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.core.source_lines import SourceLine, location, user_stack
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import Observation
from harness.diagnosis.recorders import ModuleCreationSites, OperationRecorder
from harness.diagnosis.searches import unrecorded
from harness.diagnosis.searches.forward.alignment import Alignment
from harness.diagnosis.searches.forward.where import ranges
from harness.diagnosis.variants.gradient_change import GradientChange, TrainingPass, fitted_changes
from harness.diagnosis.variants.gradient_stop import GradientStop, gradient_stops
from harness.oracle.formula import Replacement, place
from harness.subjects.model import Model
from harness.subjects.weight_map import family

HEAD = "lm_head.weight"
SAME = 1e-8  # relative to the gradient's largest value
MOST_ROWS = 4  # of a table; more rows with a wrong gradient are no case of a few special tokens
Gradients = dict[str, Tensor]  # by published name, float64


def search(
    model: Model,
    ids: Tensor,
    targets: Tensor,
    weights: dict[str, Tensor],
    size: Size,
    changes: Sequence[Replacement],
    sites: ModuleCreationSites,
) -> list[Finding]:
    """Return why the gradients differ from those of the formula with `changes`; [] if they do not.

    The formula with `changes` computes what the model computes in its forward pass.
    """
    passed = _own_pass(model, ids, targets, sites)
    if isinstance(passed, Finding):
        return [passed]
    own = passed.gradients
    if HEAD in own:  # an untied head, which another search reports: its gradient is not the embedding's
        weights = {HEAD: weights["transformer.wte.weight"], **weights}
    training = TrainingPass(size, weights, changes, ids, targets)
    right = training.gradients()
    wrong = [name for name in reversed(list(right)) if name in own and not _agree(own[name], right[name])]
    if not wrong:
        return []
    if (frozen := _frozen(model, own, wrong)) is not None:
        return [frozen]
    best: tuple[int, GradientStop, Replacement] | None = None
    for stop, change in gradient_stops(size):
        with_it = training.gradients([change])
        left = sum(not _agree(own[name], with_it[name]) for name in right if name in own)
        if left < len(wrong) and (best is None or left < best[0]):
            best = (left, stop, change)
            if left == 0:
                break
    if (best is None or best[0]) and not (len(wrong) == 1 and _rows_that_differ(own[wrong[0]], right[wrong[0]])):
        for fitted, change in fitted_changes(training, own, right, wrong):
            with_it = training.gradients([change])
            if all(_agree(own[name], with_it[name]) for name in right if name in own):
                return [_fitted(passed, right, wrong, fitted, change, Alignment(passed.observed, ids, weights, size))]
    return [_finding(own, right, wrong, best, passed.detaching)]


@dataclass(frozen=True)
class _OwnPass:
    """A forward and a backward pass of the model: its gradients and its steps.

    `detaching`: the line that detaches something in the forward pass. `backward`: the last line of the first piece of
    the user's own source that runs in the backward pass.
    """

    gradients: Gradients
    observed: Observation
    detaching: SourceLine | None
    backward: SourceLine | None


def _own_pass(model: Model, ids: Tensor, targets: Tensor, sites: ModuleCreationSites) -> _OwnPass | Finding:
    """Return both passes, or the finding that there is no backward pass."""
    model.module.zero_grad(set_to_none=True)
    with OperationRecorder(sites) as recorder:
        logits, loss = model.logits_and_loss(ids, targets)
    if not loss.requires_grad:
        return unrecorded.finding(model, logits)
    outside = {line for line, _ in user_stack()}  # who calls the harness
    with OperationRecorder(sites) as in_backward:
        loss.backward()
    lines = [step.line for step in recorder.steps if step.operation == "detach" and step.line is not None]
    detaching = (line for line in lines if any(word in line.text for word in ("detach", "no_grad", ".data")))
    return _OwnPass(
        {name: tensor.double() for name, tensor in model.gradients().items()},
        Observation(recorder.steps, logits.detach().double()),
        next(detaching, None),
        _last_before_a_repeat(
            [line for step in in_backward.steps for line, _ in step.stack[:1] if line not in outside]
        ),
    )


def _last_before_a_repeat(lines: Sequence[SourceLine]) -> SourceLine | None:
    """Return the last line before the first one runs again, as it does in the next layer; None without lines."""
    own = list(lines)
    again = own.index(own[0], 1) if own and own[0] in own[1:] else len(own)
    return own[again - 1] if own else None


def _fitted(
    passed: _OwnPass,
    right: Gradients,
    wrong: Sequence[str],
    fitted: GradientChange,
    change: Replacement,
    alignment: Alignment,
) -> Finding:
    """Return the finding for a fitted change with which every gradient agrees."""
    in_block = GradientStop(fitted.operation, 0, "").is_in_block
    where = f"h.*.{fitted.operation}" if change.layer is None and in_block else place(fitted.operation, change.layer)
    first = wrong[0]
    size = _difference(passed.gradients[first], right[first])
    evidence = (
        f"in backward order the first gradient that differs is {first}'s, by {size:.1e} of its size; "
        "with this every gradient agrees"
    )
    step = alignment.step_of(alignment.taps([]), where.replace("h.*", "h.0"))
    line = passed.backward or alignment.observed.line(step)
    return Finding(where, "", f"the forward pass agrees; {fitted.says}", evidence, *location(line))


def _finding(
    own: Gradients,
    right: Gradients,
    wrong: list[str],
    best: tuple[int, GradientStop, Replacement] | None,
    line: SourceLine | None,
) -> Finding:
    """Return the finding for gradients of which those of `wrong`, in backward order, differ.

    `best`: the stop that leaves the fewest gradients wrong, how many it leaves, and its change.
    """
    first = wrong[0]
    size = _difference(own[first], right[first])
    differs = f"in backward order the first gradient that differs is {first}'s, by {size:.1e} of its size"
    if best is not None and best[0] == 0:
        _, stop, change = best
        everywhere = change.layer is None and stop.is_in_block
        where = f"h.*.{stop.operation}" if everywhere else place(stop.operation, change.layer)
        evidence = f"{differs}; with the gradient stopped there every gradient agrees"
        return Finding(where, stop.fault, f"no gradient flows through {stop.input}", evidence, *location(line))
    rows = _rows_that_differ(own[first], right[first])
    if rows and len(wrong) == 1:
        numbers = f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows))}"
        smaller = float(own[first][rows].abs().sum()) < float(right[first][rows].abs().sum())
        fault = "embedding-padding-index" if "wte" in first and smaller else ""
        cause = f"{numbers} of {family(first)} get another gradient, and the other rows the right one"
        cause += ", as with padding_idx" * bool(fault)
        return Finding(_component(first), fault, cause, differs, *location(line))
    if len({family(name) for name in wrong}) == 1 and (how := _of_parameter(own, right, wrong)):
        return Finding(
            _component(first), "", f"the gradient of {family(first)} alone differs: {how}", differs, *location(line)
        )
    ratio = _ratio(own, right, wrong)
    if ratio is not None:
        cause = f"every gradient that differs is {ratio:.6g} times what it should be"
        return Finding(_component(first), "gradient-scaled", cause, differs, *location(line))
    cause = "the forward pass agrees, the backward pass does not"
    if best is not None:
        left, stop, _ = best
        cause += f"; no gradient through {stop.input} would cause {len(wrong) - left} of {len(wrong)} differences"
    return Finding(_component(first), "", cause, differs, *location(line))


def _frozen(model: Model, own: Gradients, wrong: list[str]) -> Finding | None:
    """Return the finding for gradients that are exactly 0: requires_grad is off, or the parameters are not used."""
    if not all(bool((own[name] == 0).all()) for name in wrong):
        return None
    parameters = dict(model.module.named_parameters())
    rows = {row.published: parameters.get(row.own) for row in model.weights.rows}
    off = [name for name in wrong if (p := rows.get(name)) is not None and not p.requires_grad]
    families = ", ".join(dict.fromkeys(family(name) for name in reversed(wrong)))
    cause = f"{families}: requires_grad is off" if off else f"{families}: no gradient arrives"
    evidence = f"the gradient of {len(wrong)} parameter{'s' * (len(wrong) > 1)} is exactly 0; every other one agrees"
    fault = "wpe-frozen" if families == "wpe.weight" else "gradient-frozen"
    return Finding(_component(wrong[0]), fault, cause, evidence)


def _rows_that_differ(own: Tensor, right: Tensor) -> list[int]:
    """Return the rows of a table whose gradient differs, [] if they are many."""
    difference = (own - right).abs().flatten(1).amax(1) if own.ndim > 1 else (own - right).abs()
    rows = (difference > SAME * right.abs().max()).nonzero().flatten().tolist()
    return rows if len(rows) <= MOST_ROWS else []


def _of_parameter(own: Gradients, right: Gradients, wrong: list[str]) -> str:
    """Return what the gradients of one kind of weight are instead, the same in each layer; "" if that is not known."""
    if all(
        right[n].ndim == 2 and right[n].shape[0] == right[n].shape[1] and _agree(own[n], right[n].mT) for n in wrong
    ):
        return "it is transposed"
    places = [(own[name] - right[name]).abs() > SAME * right[name].abs().max() for name in wrong]
    if bool(places[0].all()) or not all(
        each.shape == places[0].shape and torch.equal(each, places[0]) for each in places
    ):
        return ""
    zero = all(bool((own[name][each] == 0).all()) for name, each in zip(wrong, places, strict=True))
    axes = ("row", "column") if places[0].ndim == 2 else ("channel",)
    for axis, word in enumerate(axes):
        numbers = (
            places[0].any(dim=tuple(a for a in range(places[0].ndim) if a != axis)) if len(axes) > 1 else places[0]
        )
        shape = [1] * len(axes)
        shape[axis] = -1
        if not bool(numbers.all()) and torch.equal(numbers.view(shape).expand_as(places[0]), places[0]):
            return f"{'zero' if zero else 'another'} in {word}s {ranges(numbers.nonzero().flatten().tolist())}"
    return ""


def _ratio(own: Gradients, right: Gradients, wrong: list[str]) -> float | None:
    """Return the one factor by which all wrong gradients differ; None if there is none."""
    first = wrong[0]
    size = float((right[first] * right[first]).sum())
    if not size:
        return None
    ratio = float((own[first] * right[first]).sum()) / size
    return ratio if ratio and all(_agree(own[name], ratio * right[name]) for name in wrong) else None


def _agree(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and bool(
        (found - expected).abs().max() <= SAME * max(float(expected.abs().max()), 1e-300)
    )


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-300)


def _component(published: str) -> str:
    return published.removeprefix("transformer.").rpartition(".")[0].replace("attn.c_attn", "attn.qkv")
