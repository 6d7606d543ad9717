"""Measures of the options of the loss: its reduction, ignored targets, label smoothing, against their definitions."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import MissingAbility, SubjectError
from harness.core.sizes import SIZES
from harness.measures.cached_model import cached_model
from harness.measures.options.forward_call import answer_with, logits_with, option_of
from harness.oracle import noise_verdict
from harness.oracle.tokens import batch
from harness.subjects.forward_answer import loss_in, token_losses_in
from harness.subjects.forward_call import targets_keyword, why_no_targets
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

SMOOTHING = 0.1


@measure
def loss_reduction(subject: Subject, *, size: str, length: int = 16) -> Reading:
    """Return the relative distance of the loss from its definition, by reduction: none, sum, mean.

    "none" gives the loss of each token, in any shape. A reduction that is an error is refused, and not judged. Raises
    MissingAbility if `forward` has no reduction.
    """
    model, ids, targets, keyword = _called(subject, size, length)
    name = option_of(subject, model, "reduction")
    found: dict[str, float] = {}
    refused: dict[str, str] = {}
    for reduction in ("none", "sum", "mean"):
        try:
            answer = answer_with(model, ids, **{keyword: targets, name: reduction})
        except Exception as error:
            refused[reduction] = describe_error(error)
            continue
        each = _token_losses(_logits(model, ids), targets)
        wanted = {"none": each, "sum": each.sum(), "mean": each.mean()}[reduction]
        got = token_losses_in(answer, targets.numel()) if reduction == "none" else loss_in(answer)
        if got is None:
            raise SubjectError(
                f"{name}='{reduction}' gives no loss{' of each token' if reduction == 'none' else ''}: expected "
                f"{wanted.numel()} numbers"
            )
        found[f"{name}={reduction}"] = noise_verdict.relative_distance(got, wanted)
    if not found:
        raise MissingAbility(f"'{name}' of forward of {subject.name} takes no reduction: {refused['mean']}")
    return Reading(found, "relative", {"not judged": refused})


@measure
def ignored_targets(subject: Subject, *, size: str, length: int = 16) -> Reading:
    """Return the relative distance of the loss from the mean over the targets that are not ignored.

    The ignored target is a token of the vocabulary: it is a third of the targets, and all of one row. Raises
    MissingAbility if `forward` has no option for it.
    """
    model, ids, targets, keyword = _called(subject, size, length)
    name, ignored = option_of(subject, model, "ignore_index"), 7
    targets = targets.clone()
    targets.view(-1)[::3] = ignored
    targets[0] = ignored
    answer = answer_with(model, ids, **{keyword: targets, name: ignored})
    each = _token_losses(_logits(model, ids), targets)[targets.flatten() != ignored]
    return Reading({f"{name}={ignored}": noise_verdict.relative_distance(_loss(answer), each.mean())}, "relative")


@measure
def label_smoothing(subject: Subject, *, size: str, length: int = 16) -> Reading:
    """Return the relative distance of the smoothed loss from its definition: (1 - e) of the target's, e of the mean's.

    The mean is over the whole vocabulary (Szegedy et al., 2016, and torch), or over the other tokens (tensor2tensor):
    the nearer one counts. Raises MissingAbility if `forward` has no option for it.
    """
    model, ids, targets, keyword = _called(subject, size, length)
    name = option_of(subject, model, "label smoothing")
    answer = answer_with(model, ids, **{keyword: targets, name: SMOOTHING})
    logits = _logits(model, ids)
    each, everything = _token_losses(logits, targets), -logits.flatten(0, 1).log_softmax(-1).sum(-1)
    V = logits.shape[-1]
    definitions = {
        "over the whole vocabulary": (1 - SMOOTHING) * each + SMOOTHING * everything / V,
        "over the other tokens": (1 - SMOOTHING) * each + SMOOTHING * (everything - each) / (V - 1),
    }
    gaps = {
        convention: noise_verdict.relative_distance(_loss(answer), wanted.mean())
        for convention, wanted in definitions.items()
    }
    convention = min(gaps, key=lambda key: (gaps[key] != gaps[key], gaps[key]))
    return Reading({f"{name}={SMOOTHING}": gaps[convention]}, "relative", {"convention": convention})


def _called(subject: Subject, size: str, length: int) -> tuple[Model, Tensor, Tensor, str]:
    """Return a float64 model, ids, targets and the parameter for targets. Raises MissingAbility if it has none."""
    model = cached_model(subject, size, "probe", "float64")
    keyword = targets_keyword(model.module)
    if keyword is None:
        raise MissingAbility(f"{subject.name} computes no loss of its own: its forward {why_no_targets(model.module)}")
    ids, targets = batch(SIZES[size], "random", rows=3, length=length)
    return model, ids, targets, keyword


def _logits(model: Model, ids: Tensor) -> Tensor:
    """Return the logits (B, T, V) of all columns: those of a padded vocabulary take part in the softmax."""
    logits = logits_with(model, ids)
    return logits if logits.shape[1] == ids.shape[1] else model.logits(ids)


def _token_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return -log p of each target, (B·T,)."""
    log_p = logits.flatten(0, 1).log_softmax(-1)
    return -log_p.gather(1, targets.reshape(-1, 1))[:, 0]


def _loss(answer: object) -> Tensor:
    loss = loss_in(answer)
    if loss is None:
        raise SubjectError("the call gives no single loss")
    return loss.to(torch.float64)
