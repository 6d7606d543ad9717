"""Measures of answers that stay what they were: after a backward pass, another call, generation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from harness.core.error_text import describe_error
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.measures.conditions.sweep import GRADIENTS
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Caches, Generates, Subject
from harness.suites.measure_registry import Reading, measure


@measure
def answers_overwritten(subject: Subject, *, size: str, seed: int = 0) -> Reading:
    """Return "kept" for logits and losses whose numbers stay what they were, or what overwrites them.

    An answer is read again after a backward pass, a call of the same shape, one of another shape, and generation. Its
    memory must be that of no parameter and no buffer, and not that of the ids.
    """
    model = built(subject, size)
    ids, targets = batch(SIZES[size], "random", rows=3, length=9, seed=seed)
    ids, targets = ids.to(model.device), targets.to(model.device)  # so that the answers are the model's, no copies
    others, _ = batch(SIZES[size], "random", rows=5, length=11, seed=seed + 1)
    found: dict[str, str] = {}
    not_judged: dict[str, str] = {}
    for gradients, entered in GRADIENTS.items():
        for call, given in (("logits", None), ("targets", targets)):
            place = f"{call} {'alone' if given is None else 'given'}, gradients {gradients}".replace("_", " ")
            with entered():
                try:
                    logits, loss = model.one_call(ids.clone(), given)
                except RuntimeError as error:
                    if gradients != "inference_mode":  # a loss that differentiates in its forward pass refuses it
                        raise
                    not_judged[place] = describe_error(error)
                    continue
                kept = _Kept(logits, loss)
                found[place] = kept.memory(model, ids) or ""
                for event, action in _events(subject, model, ids, others, logits, loss, gradients):
                    with contextlib.suppress(MissingAbility), _inference_errors_suppressed(gradients):
                        action()
                    found[place] = found[place] or kept.changed_by(event)
    if isinstance(subject, Caches):
        found["logits of a decoding step"] = _step(subject, model, ids)
    return Reading({place: text or "kept" for place, text in found.items()}, details={"not judged": not_judged})


def built(subject: Subject, size: str, dtype: str = "float32") -> Model:
    """Return the subject with probe weights and no dropout; with its own initial weights if it has no weight map."""
    try:
        return build_with_weights(subject, SIZES[size], state(size, "probe"), dtype, dropout=0.0)
    except MissingAbility:
        return subject.build(SIZES[size], seed=7, dtype=dtype)


@contextlib.contextmanager
def _inference_errors_suppressed(gradients: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError:
        if gradients != "inference_mode":
            raise


class _Kept:
    """An answer, and a copy of it as it was given."""

    def __init__(self, logits: Tensor, loss: Tensor | None) -> None:
        self.tensors = {"the logits": logits} | ({} if loss is None else {"the loss": loss})
        self.copies = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def changed_by(self, event: str) -> str:
        """Return what has other numbers now, in words; "" if nothing has."""
        changed = [name for name, t in self.tensors.items() if not torch.equal(t.detach(), self.copies[name])]
        return f"{' and '.join(changed)} overwritten by {event}" if changed else ""

    def memory(self, model: Model, ids: Tensor) -> str:
        """Return whose memory the answer is; "" if it is its own."""
        owners = {"the ids": ids, **dict(model.module.named_parameters()), **dict(model.module.named_buffers())}
        where = {t.untyped_storage().data_ptr(): name for name, t in owners.items() if t.numel()}
        for name, tensor in self.tensors.items():
            if (owner := where.get(tensor.untyped_storage().data_ptr())) is not None:
                return f"{name}: the memory of {owner}"
        return ""


def _events(
    subject: Subject, model: Model, ids: Tensor, others: Tensor, logits: Tensor, loss: Tensor | None, gradients: str
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Yield what may overwrite an answer, from the nearest."""
    if gradients == "recorded":
        scalar = loss if loss is not None else logits.logsumexp(-1).mean()
        yield "the backward pass", scalar.backward
    yield "the next call of the same shape", lambda: model.one_call(others[:3, :9].contiguous())
    yield "the next call of another shape", lambda: model.one_call(others)
    yield "the next call with targets", lambda: model.one_call(others[:, :-1].contiguous(), others[:, 1:].contiguous())
    if isinstance(subject, Generates):
        yield "generation", lambda: subject.generate(model, ids[:1, :3].contiguous(), 3, temperature=0.0)


def _step(subject: Caches, model: Model, ids: Tensor) -> str:
    with torch.no_grad(), contextlib.suppress(MissingAbility):
        cache = subject.new_cache(model, len(ids))
        kept = _Kept(subject.step(model, ids[:, :4].contiguous(), cache), None)
        subject.step(model, ids[:, 4:5].contiguous(), cache)
        first = kept.changed_by("the next step")
        second = _Kept(subject.step(model, ids[:, 5:6].contiguous(), cache), None)
        subject.step(model, ids[:, 6:7].contiguous(), cache)
        return first or second.changed_by("the next step")
    return ""
